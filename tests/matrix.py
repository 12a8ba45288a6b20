"""The tests of what runs beside inference, on every supported Python that this machine has.

``python tests/matrix.py DIRECTORY WHEEL [--python 3.10] [--pytest tests/unit]`` makes one environment per Python under
DIRECTORY, with the wheel, the collector and the test tools, and runs the unit tests and the agent's integration tests.
Tests that need torch are skipped where there is none; a Python that is missing is named.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ROOT = Path(__file__).resolve().parents[1]
AGENT = ("test_agent.py", "test_doctor.py", "test_fork_servers.py", "test_portable*.py")
TESTS = ["tests/unit", *(str(p.relative_to(ROOT)) for name in AGENT for p in ROOT.glob(f"tests/integration/{name}"))]


def find(version: str) -> str | None:
    """Return an interpreter of this version: the newest that pyenv has, or the one on PATH, if it runs."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    kept = sorted(pyenv.glob(f"{version}.*/bin/python"), key=lambda path: int(path.parts[-3].split(".")[2]))
    for candidate in [*map(str, reversed(kept)), shutil.which(f"python{version}")]:
        check = f"import ensurepip, venv, sys; sys.exit(sys.version_info[:2] != {tuple(map(int, version.split('.')))})"
        if candidate and not subprocess.run([candidate, "-c", check], capture_output=True, check=False).returncode:
            return candidate
    return None


def run(interpreter: str, home: Path, wheel: str, arguments: list[str]) -> int:
    """Make the environment and run the tests in it; return what pytest returned."""
    subprocess.run([interpreter, "-m", "venv", "--clear", "--without-pip", home], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", home / "bin" / "python"]
    subprocess.run([*pip, "install", "-q", f"{wheel}[server,grpc]", "--group", "test"], check=True, cwd=ROOT)
    env = {**os.environ, "PYTHONSAFEPATH": "1"}
    pytest = [home / "bin" / "pytest", "-q", "-n", "2", "--dist", "loadfile", *arguments]
    return subprocess.run(pytest, check=False, cwd=ROOT, env=env).returncode


def main() -> None:
    """Run all, then say what was run, for how long, with which result, and what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("wheel")
    parser.add_argument("--python", action="append", choices=PYTHONS, help="only this one; may be repeated")
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, help="all that follows is pytest's, instead of the tests")
    options = parser.parse_args()
    summary, failed = [], False
    for version in options.python or PYTHONS:
        interpreter, started = find(version), time.monotonic()
        if interpreter is None:
            summary.append(f"Python {version}: missing, not tested")
            continue
        result = run(interpreter, options.directory / version, options.wheel, options.pytest or TESTS)
        failed |= result != 0
        summary.append(f"Python {version}: {'failed' if result else 'ok'} in {time.monotonic() - started:.0f} s")
    print("", *summary, sep="\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
