"""Fuzz one door with atheris: `python tests/fuzz/run.py http 300`, for five minutes.

What it finds is left in the working directory as `crash-…` by libFuzzer: fix it, and keep the file in the corpus.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT.parent))


def main():
    """Run a harness for some seconds on the corpus and what it finds out on the way."""
    name, seconds = sys.argv[1], int(sys.argv[2])
    try:
        import atheris
    except ImportError:
        print("fuzz: left out, atheris is not installed: pip install --group fuzz (Linux, Python 3.11 to 3.13)")
        return
    with atheris.instrument_imports(include=["axonize_server", "httptools"]):
        from fuzz.oracles import ORACLES
    with tempfile.TemporaryDirectory() as found:
        limits = [
            f"-max_total_time={seconds}",
            "-max_len=8192",
            "-rss_limit_mb=3000",
            "-timeout=20",
            "-print_final_stats=1",
        ]
        atheris.Setup([sys.argv[0], *limits, found, str(ROOT / "corpus" / name)], ORACLES[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
