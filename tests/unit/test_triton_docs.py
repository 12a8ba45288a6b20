"""docs/triton.md against what it names."""

from __future__ import annotations

import re
from pathlib import Path

from axonize_core import attributes
from axonize_core.settings import SETTINGS
from axonize_triton.commands import triton
from axonize_triton.model import FLUSH_S

TEXT = (Path(__file__).resolve().parents[2] / "docs/triton.md").read_text()


def test_attributes_of_the_guide_exist():
    """A reader finds in the store what the guide names."""
    named = set(re.findall(r"`((?:ai|gen_ai|gpu)\.[a-z_.]+)`", TEXT))
    assert named == {"ai.model.instance", "ai.responses"}
    assert named - {"ai.model.instance"} <= {one.name for one in attributes.ATTRIBUTES}


def test_settings_of_triton_stand_in_the_guide():
    """Each setting that is Triton's alone, and no other."""
    own = {setting.env for setting in SETTINGS if "TRITON" in setting.env}
    assert set(re.findall(r"AXONIZE_TRITON\w*", TEXT)) == own


def test_commands_of_the_guide_exist():
    """With their options."""
    assert set(re.findall(r"`axonize triton (\w+)", TEXT)) == set(triton.commands)
    options = {option for command in triton.commands.values() for one in command.params for option in one.opts}
    assert {"--python", "--stub"} <= options


def test_what_finalize_may_take():
    """As the code has it."""
    assert f"within {FLUSH_S:.0f} s" in TEXT
