"""Undoing what a killed engine left half done, before the embedded store is opened.

A MergeTree table notes the token of a block in its deduplication log first and names the block's part after that
(seen with inotify on 26.9). Killed between the two, it has the token and not the rows, and would drop the segment
when it comes again. What is noted there without a part is forgotten here, so that it is taken.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["forget_lost_blocks"]

_PART = re.compile(r"(?P<partition>[^_]+)_(?P<first>\d+)_(?P<last>\d+)_\d+(?:_\d+)?")
_NOTED = "1"  # the operation of a line that adds a block; 2 takes one back


class _Part(NamedTuple):
    partition: str
    first: int
    last: int

    def within(self, other: _Part) -> bool:
        return self.partition == other.partition and other.first <= self.first and self.last <= other.last


def forget_lost_blocks(directory: Path) -> list[str]:
    """Take the blocks that have no part out of the deduplication logs of an engine's directory.

    Args:
        directory: of an engine that is not running.

    Returns:
        The names of the parts that are missing.

    Raises:
        OSError: A log cannot be read or written; it is as it was.
    """
    lost = []
    for log in sorted(directory.glob("store/*/*/deduplication_logs/deduplication_log_*.txt")):
        there = [part for path in log.parents[1].iterdir() if (part := _parsed(path.name)) is not None]
        lines = log.read_text().splitlines(keepends=True)
        missing = {line for line in lines if _is_lost(line, there)}
        if missing:
            draft = log.with_suffix(".draft")
            draft.write_text("".join(line for line in lines if line not in missing))
            draft.replace(log)
            lost += [line.split("\t")[1] for line in missing]
    return sorted(lost)


def _parsed(name: str) -> _Part | None:
    match = _PART.fullmatch(name)
    return _Part(match["partition"], int(match["first"]), int(match["last"])) if match else None


def _is_lost(line: str, there: list[_Part]) -> bool:
    """Say whether a line notes a block that is in no part; one that was merged is within a larger part."""
    operation, _, rest = line.partition("\t")
    noted = _parsed(rest.split("\t", 1)[0])
    return operation == _NOTED and noted is not None and not any(noted.within(part) for part in there)
