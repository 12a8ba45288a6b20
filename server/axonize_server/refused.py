"""``spool/refused``: segments the store does not take, each with its reason, until a person puts them back.

A segment stands there under ``<signal>/<id>.pb`` beside ``<id>.reason.json``. Nothing of it is deleted, its bytes
count toward the spool's bound, and health is degraded while one is there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from axonize_server.spool import Segment, sync_directory

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "FOLDER",
    "Refusal",
    "put_back",
    "read_refusal",
    "reason_path",
    "refused_segments",
    "set_aside",
    "write_refusal",
]

FOLDER: Final = "refused"


class Refusal(NamedTuple):
    """Why a segment was set aside."""

    reason: str
    """What the store or the reader said."""
    cause: str
    """One word to count by: `header`, `version`, `data`, `failing`."""
    part_of: str | None = None
    """The segment it was cut out of; the rest of that is stored."""
    stored_in_part: bool = False
    """Whether rows of it may be in the store already, so that putting it back could count them twice."""


def refused_segments(spool_dir: Path) -> list[Segment]:
    """What is set aside, oldest first."""
    found = []
    for path in spool_dir.glob(f"{FOLDER}/*/*.pb"):
        created, _, _ = path.stem.partition("-")
        try:
            size = path.stat().st_size
        except FileNotFoundError:  # put back meanwhile
            continue
        found.append(Segment(path, path.stem, path.parent.name, int(created) if created.isdigit() else 0, size))
    return sorted(found, key=lambda segment: (segment.created_ns, segment.id))


def set_aside(spool_dir: Path, segment: Segment, refusal: Refusal) -> None:
    """Move a segment out of the writer's way.

    Raises:
        OSError: The disk refused; the segment is where it was.
    """
    folder = spool_dir / FOLDER / segment.signal
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = folder / segment.path.name
    write_refusal(target, refusal)
    segment.path.rename(target)
    sync_directory(folder)


def write_refusal(segment: Path, refusal: Refusal) -> None:
    """Put the reason beside a segment."""
    text = json.dumps(refusal._asdict(), ensure_ascii=False, indent=1)
    reason_path(segment).write_text(text + "\n", "utf-8")


def read_refusal(segment: Path) -> Refusal:
    """The reason beside a segment; one that cannot be read says so."""
    try:
        facts: dict[str, Any] = json.loads(reason_path(segment).read_text("utf-8"))
        return Refusal(**facts)
    except (OSError, ValueError, TypeError) as e:
        return Refusal(f"its reason cannot be read: {e}", "unknown")


def put_back(spool_dir: Path, segment: Segment) -> None:
    """Give a segment to the writer again, under its own id: what the store has of it stays stored once.

    Raises:
        FileExistsError: The spool has a segment of that id.
        OSError: The disk refused; the segment is where it was.
    """
    target = spool_dir / segment.signal / segment.path.name
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if target.exists():
        raise FileExistsError(f"{str(target)!r} is there already")
    segment.path.rename(target)
    reason_path(segment.path).unlink(missing_ok=True)


def reason_path(segment: Path) -> Path:
    """Where a segment's reason stands."""
    return segment.with_name(f"{segment.stem}.reason.json")
