"""The promises name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_named_is_there():
    """Files and functions of docs/reliability.md stand in the test suite."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    files = {path.name: path.read_text() for path in (ROOT / "tests").glob("*/test_*.py")}
    named_files, functions = set(re.findall(r"`(test_\w+\.py)`", text)), set(re.findall(r"`(test_\w+)`", text))
    assert named_files <= set(files)
    everything = "\n".join(files[name] for name in named_files)
    assert {name for name in functions if f"def {name}(" not in everything} == set()
    assert len(functions) > 10
