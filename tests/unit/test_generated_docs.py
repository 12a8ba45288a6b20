from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from axonize_core.attributes import ATTRIBUTES

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(
    ("module", "document"), [("axonize_core.attributes", "attributes.md"), ("axonize_core.settings", "settings.md")]
)
def test_generated_documents_are_up_to_date(module, document):
    """What stands in docs/ is what the code says; `make docs` brings it there."""
    result = subprocess.run([sys.executable, "-m", module], capture_output=True, text=True, check=True)
    assert (DOCS / document).read_text() == result.stdout


def test_no_attribute_is_defined_twice():
    """Each attribute has one definition."""
    names = [a.name for a in ATTRIBUTES]
    assert len(names) == len(set(names))
