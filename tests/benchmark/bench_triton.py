"""Everything about Triton, measured on a real server: ``bench_triton.py [PART…]``, parts are micro and serve.

The server lives in an environment of its own, which ``make test-triton`` makes; each part runs there, in a process of its
own, and hands its rows back. ``AXONIZE_TRITON_PYTHON`` names another interpreter that has tritonserver and Axonize.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bench_table import Row, print_table

PARTS = ("micro", "serve")
HERE = Path(__file__).resolve().parent


def run(parts: tuple[str, ...] = PARTS) -> list[Row]:
    """Return the rows of these parts; none, and the reason printed, where there is no environment with a server.

    Raises:
        RuntimeError: a part failed; its output is printed.
    """
    python = Path(os.environ.get("AXONIZE_TRITON_PYTHON") or Path(sys.prefix, "triton", "bin", "python"))
    if not python.exists():
        print(f"bench_triton: skipped, there is no {python}: make test-triton makes it", file=sys.stderr)
        return []
    return [row for part in parts for row in _rows(python, part)]


def _rows(python: Path, part: str) -> list[Row]:
    print(f"bench_triton {part}, load {os.getloadavg()[0]:.1f} …", file=sys.stderr, flush=True)
    command = [str(python), str(HERE / f"bench_triton_{part}.py")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    said = [line for line in done.stdout.splitlines() if line.startswith("rows: ")]
    if done.returncode or not said:
        print(done.stdout[-4000:], done.stderr[-8000:], sep="\n", file=sys.stderr)
        raise RuntimeError(f"bench_triton_{part} ended with {done.returncode}")
    return [Row(*row) for row in json.loads(said[-1].removeprefix("rows: "))]


if __name__ == "__main__":
    print_table(run(tuple(sys.argv[1:]) or PARTS))
