"""What this integration supports, as data."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

__all__ = [
    "CAPABILITIES",
    "ENGINE",
    "PROVIDER",
    "SUPPORTED",
    "TESTED",
    "Capability",
    "added_later",
    "has",
    "is_supported",
    "workload",
]

ENGINE = "transformers"
PROVIDER = "huggingface"

SUPPORTED = ((4, 46), (6, 0))
"""Versions of transformers: from the first, up to but without the second (major, minor)."""


TESTED = ("4.46.3", "4.57.6", "5.0.0", "5.23.0")
"""Versions that every task and mode is run with, for docs/huggingface-matrix.md; the last is the newest."""


class Capability(NamedTuple):
    """What not every supported version can do: from ``since`` up to but without ``before`` (None: still)."""

    name: str
    meaning: str
    since: tuple[int, int] = SUPPORTED[0]
    before: tuple[int, int] | None = None


CAPABILITIES = (
    Capability("prefill_chunking", "generate(prefill_chunk_size=…)", (4, 51)),
    Capability("continuous_batching", "continuous batching", (4, 53)),
    Capability("record_timestamps", "times of tokens in continuous batching", (5, 0)),
    Capability("continuous_batching_on_cpu", "continuous batching without a GPU", (5, 1)),
    Capability("contrastive_search", "contrastive search and DoLa without remote code", before=(4, 56)),
    Capability("group_beam_search", "diverse beam search without remote code", before=(4, 57)),
    Capability("text2text_pipelines", "text2text-generation, summarization and translation", before=(5, 0)),
    Capability("question_answering", "the question-answering pipeline", before=(5, 3)),
)
"""By the sources of transformers; a test holds them against what ran."""


def is_supported(version: str) -> bool:
    """Say whether a version string such as ``"5.0.0rc1"`` lies in the supported range."""
    found = _parsed(version)
    return found is not None and SUPPORTED[0] <= found < SUPPORTED[1]


def has(capability: str, version: str) -> bool:
    """Say whether a version can do what a capability names.

    Raises:
        KeyError: there is no such capability.
    """
    known, found = {c.name: c for c in CAPABILITIES}[capability], _parsed(version)
    return found is not None and known.since <= found and (known.before is None or found < known.before)


def added_later(version: str) -> list[str]:
    """Return what a version cannot do yet, each with the version that can, for ``axonize doctor``."""
    found = _parsed(version)
    later = [c for c in CAPABILITIES if found is not None and found < c.since]
    return [f"{c.meaning} ({c.since[0]}.{c.since[1]})" for c in later]


def _parsed(version: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", version)
    return None if found is None else (int(found[1]), int(found[2]))


def workload(model: str | None) -> Any:
    """Return what ``axonize bench overhead`` measures with (``axonize_core.bench.workload``); loads torch."""
    from axonize_hf.workload import TextGeneration  # noqa: PLC0415 - what else asks here wants data only

    return TextGeneration(model)
