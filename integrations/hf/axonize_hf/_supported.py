"""What this integration supports, as data."""

from __future__ import annotations

import re

__all__ = ["ENGINE", "PROVIDER", "SUPPORTED", "is_supported"]

ENGINE = "transformers"
PROVIDER = "huggingface"

SUPPORTED = ((4, 46), (6, 0))
"""Versions of transformers: from the first, up to but without the second (major, minor)."""


def is_supported(version: str) -> bool:
    """Say whether a version string such as ``"5.0.0rc1"`` lies in the supported range."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is not None and SUPPORTED[0] <= (int(found[1]), int(found[2])) < SUPPORTED[1]
