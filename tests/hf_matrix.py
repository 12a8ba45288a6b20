"""Runs every task and mode on every version of transformers we try: ``python tests/hf_matrix.py``.

Versions are installed beside the environment's own torch and run two at a time, each in a process of its own.
``--docs`` writes docs/huggingface-matrix.md, ``--only 4.46`` runs one version, words choose rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from axonize_hf._supported import TESTED  # noqa: E402  same
from hf_matrix_table import Cell, meaning_of, read, render  # noqa: E402  its folder is put on the path above
from hf_matrix_versions import CannotInstallError, installed_path  # noqa: E402  same

DOCUMENT = HERE.parent / "docs/huggingface-matrix.md"
LIMIT_S = 900


def run(version: str, words: list[str]) -> list[Cell]:
    """Run the rows on one version and return their cells.

    Raises:
        CannotInstallError: the version cannot be installed.
        RuntimeError: the process that runs the rows died, and what it said last.
    """
    path = [*installed_path(version), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    # The table is of a CPU, wherever it is made; and nothing may be downloaded by a row.
    env = {"PYTHONPATH": os.pathsep.join(path), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", str(HERE / "hf_matrix_run.py"), *words]
    done = subprocess.run(
        command, env={**os.environ, **env}, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"transformers {version}: exit code {done.returncode}\n{done.stderr[-4000:]}")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return [Cell(version, *(row[name] for name in Cell._fields[1:])) for row in rows]


def differences(version: str, cells: list[Cell]) -> list[str]:
    """Return where what ran is not what the document says of a version."""
    documented = read(DOCUMENT.read_text()).get(version, {})
    ran = {(cell.task, cell.mode): meaning_of(cell) for cell in cells}
    keys = [*ran, *(key for key in documented if key not in ran)]
    return [
        f"{task} · {mode}: the document says {documented.get((task, mode))!r}, the run {ran.get((task, mode))!r}"
        for task, mode in keys
        if documented.get((task, mode)) != ran.get((task, mode))
    ]


def _report(version: str, words: list[str]) -> list[Cell] | None:
    """Run a version and say how it went; None where it could not be installed."""
    started = time.perf_counter()
    try:
        cells = run(version, words)
    except CannotInstallError as e:
        print(f"transformers {version}: skipped, it cannot be installed: {e}", flush=True)
        return None
    counts = {result: sum(cell.result == result for cell in cells) for result in ("ok", "unsupported", "failed")}
    took_s = time.perf_counter() - started
    print(f"transformers {version}: {', '.join(f'{n} {r}' for r, n in counts.items())} in {took_s:.0f} s", flush=True)
    return cells


def main() -> int:
    """Run what is asked for; the exit code says whether something failed or the document is out of date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="VERSION", default="", help="the versions that begin so")
    parser.add_argument("--docs", action="store_true", help=f"write docs/{DOCUMENT.name}")
    parser.add_argument("words", nargs="*", help="rows whose task or mode contains one of these")
    asked = parser.parse_args()
    versions = [version for version in TESTED if version.startswith(asked.only)]
    with ThreadPoolExecutor(2) as pool:
        ran = dict(zip(versions, pool.map(lambda version: _report(version, asked.words), versions), strict=True))
    found = {version: cells for version, cells in ran.items() if cells is not None}
    wrong = [
        f"{c.version} · {c.task} · {c.mode}: {c.why}" for cells in found.values() for c in cells if c.result == "failed"
    ]
    if asked.docs and not wrong and len(found) == len(TESTED) and not asked.words:
        DOCUMENT.write_text(render(cell for cells in found.values() for cell in cells))
    elif not asked.words:
        wrong += [f"{version} · {text}" for version, cells in found.items() for text in differences(version, cells)]
    untried = [version for version in versions if version not in found]
    print("\n".join(wrong) or f"nothing wrong; not tried: {', '.join(untried) or 'none'}")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
