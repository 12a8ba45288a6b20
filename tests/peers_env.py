"""Makes the environments of the peers that ``make bench BENCH=peers`` runs: rotel's collector and Arize Phoenix.

``python tests/peers_env.py DIRECTORY``: some minutes and about 1 GB the first time, seconds when all is there. Each has
an environment of its own; neither shares anything with ours.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # which PYTHONSAFEPATH leaves out

from matrix import find

ROTEL = "rotel==0.0.1a15"
"""Its binary loads libpython of the minor version it was built for."""
PHOENIX = "arize-phoenix==20.26.1"
VERSIONS = {"rotel": "3.12", "phoenix": "3.11"}


def make(home: Path) -> None:
    """Make both environments, or bring them up to date; what cannot be had is said, and its rows are left out."""
    for name, package in (("rotel", ROTEL), ("phoenix", PHOENIX)):
        interpreter = find(VERSIONS[name])
        if interpreter is None:
            print(f"peers: no {package}: there is no Python {VERSIONS[name]} here", file=sys.stderr)
            continue
        python = home / name / "bin" / "python"
        if not python.exists():
            subprocess.run([interpreter, "-m", "venv", home / name], check=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-q", package]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"peers: no {package}: {done.stderr.strip()[-500:]}", file=sys.stderr)
            shutil.rmtree(home / name)


if __name__ == "__main__":
    make(Path(sys.argv[1]).absolute())
