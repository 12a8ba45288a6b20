"""What this integration supports, as data."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["ENGINE", "PROVIDER", "SUPPORTED", "TASKS", "Task", "is_supported"]

ENGINE = "transformers"
PROVIDER = "huggingface"

SUPPORTED = ((4, 46), (6, 0))
"""Versions of transformers: from the first, up to but without the second (major, minor)."""


class Task(NamedTuple):
    """A pipeline's task: the operation its requests report, and whether its forward calls ``generate``."""

    operation: str
    generates: bool


TASKS = {
    "text-generation": Task("text_completion", generates=True),
    "text-classification": Task("classification", generates=False),
    "feature-extraction": Task("embeddings", generates=False),
}


def is_supported(version: str) -> bool:
    """Say whether a version string such as ``"5.0.0rc1"`` lies in the supported range."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and SUPPORTED[0] <= (int(found[1]), int(found[2])) < SUPPORTED[1]
