"""Everything about vLLM, measured on a real engine: ``bench_vllm.py [PART…]``, parts are micro, paired, steps, large, serve, accuracy.

vLLM lives in an environment of its own, which ``make test-vllm`` makes; each part runs there, in a process of its own, and
hands its rows back. ``AXONIZE_VLLM_PYTHON`` names another interpreter that has vLLM and Axonize.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bench_table import Row, print_table

PARTS = ("micro", "paired", "steps", "large", "serve", "accuracy")
HERE = Path(__file__).resolve().parent


def run(parts: tuple[str, ...] = PARTS) -> list[Row]:
    """Return the rows of these parts; none, and the reason printed, where there is no environment with vLLM.

    Raises:
        RuntimeError: a part failed; its output is printed.
    """
    python = Path(os.environ.get("AXONIZE_VLLM_PYTHON") or Path(sys.prefix, "vllm", "bin", "python"))
    if not python.exists():
        print(f"bench_vllm: skipped, there is no {python}: make test-vllm makes it", file=sys.stderr)
        return []
    return [row for part in parts for row in _rows(python, part)]


def _rows(python: Path, part: str) -> list[Row]:
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"bench_vllm {part}, {machine}: above 1.5 only what micro says counts …", file=sys.stderr, flush=True)
    command = [str(python), str(HERE / f"bench_vllm_{part}.py")]
    # The parts find each other by their folder; the checkout itself is not on their path.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    done = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    said = [line for line in done.stdout.splitlines() if line.startswith("rows: ")]
    if done.returncode or not said:
        print(done.stdout[-4000:], done.stderr[-8000:], sep="\n", file=sys.stderr)
        raise RuntimeError(f"bench_vllm_{part} ended with {done.returncode}")
    return [Row(*row) for row in json.loads(said[-1].removeprefix("rows: "))]


if __name__ == "__main__":
    print_table(run(tuple(sys.argv[1:]) or PARTS))
