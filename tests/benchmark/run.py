"""``make bench``: run every bench_*.py beside this file and print one table; ``run.py NAME…`` runs some.

``outage`` and ``soak`` take more than ten minutes, ``peers`` installs others' software: they run only when they are named.

A number that misses its target says NO; with ``--strict`` the exit code says so too. A benchmark that cannot run always does.
"""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
ONLY_WHEN_NAMED = {"bench_outage", "bench_peers", "bench_soak"}
NOT_ALONE = ("bench_table", "bench_triton_", "bench_vllm_")
"""Parts of others: bench_vllm and bench_triton run theirs in the environments that have a server."""
sys.path[:0] = [str(HERE), str(HERE.parent)]

from bench_table import print_table  # noqa: E402  its folder is put on the path above


def main(wanted: list[str], *, strict: bool) -> int:
    """Return how many benchmarks could not run and, if ``strict``, how many numbers missed their target."""
    names = [path.stem for path in sorted(HERE.glob("bench_*.py")) if not path.stem.startswith(NOT_ALONE)]
    rows, broken = [], []
    for name in names:
        if name.removeprefix("bench_") not in wanted if wanted else name in ONLY_WHEN_NAMED:
            continue
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            rows += import_module(name).run()
        except Exception:
            traceback.print_exc()
            broken.append(name)
    print_table(rows)
    missed = [row.name for row in rows if not row.met]
    print(f"\n{len(rows) - len(missed)} of {len(rows)} met{f'; could not run: {broken}' if broken else ''}")
    return len(broken) + (len(missed) if strict else 0)


if __name__ == "__main__":
    names = [argument for argument in sys.argv[1:] if argument != "--strict"]
    sys.exit(bool(main(names, strict="--strict" in sys.argv)))
