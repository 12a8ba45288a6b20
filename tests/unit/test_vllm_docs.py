"""docs/vllm.md against the table of what is supported."""

from __future__ import annotations

import re
from pathlib import Path

from axonize_core import attributes
from axonize_core.settings import SETTINGS
from axonize_vllm._supported import CAPABILITIES, SUPPORTED, TESTED

TEXT = (Path(__file__).resolve().parents[2] / "docs/vllm.md").read_text()


def _version(version):
    return ".".join(map(str, version))


def test_every_capability_stands_in_the_guide():
    """With its meaning and its first version, in the order of the table, and no other."""
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (\d+\.\d+) \|$", TEXT, re.MULTILINE)
    assert rows == [(one.name, one.meaning, _version(one.since)) for one in CAPABILITIES]


def test_the_versions_of_the_guide_are_those_of_the_table():
    """What is supported, and what was held against sources."""
    low, high = map(_version, SUPPORTED)
    assert f"Supported: vLLM {low} up to, not including, {high}." in TEXT
    assert re.findall(r"\d+\.\d+\.\d+", TEXT.split("\n## ")[0]) == [*TESTED, "0.32.0"]


def test_attributes_of_the_guide_exist():
    """A reader finds in the store what the guide names."""
    named = set(re.findall(r"`((?:ai|gen_ai|gpu)\.[a-z_.]+)`", TEXT))
    resource = {"ai.engine.id"}
    assert len(named) > 10
    assert named - resource <= {one.name for one in attributes.ATTRIBUTES}


def test_settings_of_vllm_stand_in_the_guide():
    """Each setting that is vLLM's alone."""
    own = [setting.env for setting in SETTINGS if "VLLM" in setting.env]
    assert own
    assert all(name in TEXT for name in own)
