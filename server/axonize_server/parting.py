"""Cutting a segment the store refuses: the good keep its place and its id, the bad go to ``spool/refused``.

The id is the token of the insert, and every table that took the first attempt's block, whole, knows it. So the
rest is inserted under the same id: such a table drops it, all others take it, and each good record counts once
everywhere whatever the refused attempts left behind (docs/adr/0006).

The files change hands so that a crash at any step repeats into the same end: the pieces are made durable under a
name nobody reads, then the rest takes the segment's name in one rename, then the pieces take theirs.
"""

from __future__ import annotations

import contextlib
import os
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from google.protobuf.message import DecodeError

from axonize_server.refused import FOLDER, Refusal, read_refusal, reason_path, write_refusal
from axonize_server.spool import framed, header_message, read_header, requests, sync_directory
from axonize_server.store.anew import REQUESTS, stamp, stamped

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping, Sequence
    from pathlib import Path

    from google.protobuf.message import Message

    from axonize_server.spool import Segment

__all__ = [
    "Split",
    "finish_parting",
    "is_rest",
    "mark_stored_in_part",
    "read_requests",
    "split",
    "write_parts",
    "write_segment",
]

_DRAFT: Final = ".draft"
_NAMES: Final = {
    "traces": ("resource_spans", "scope_spans", "spans"),
    "metrics": ("resource_metrics", "scope_metrics", "metrics"),
    "logs": ("resource_logs", "scope_logs", "log_records"),
}


class Split(NamedTuple):
    """A request whose spans, metrics or log records can be had apart."""

    records: int
    only: Callable[[Container[int]], bytes]
    """The request with these records alone, in their resources and scopes, from the same tenant and time."""


def read_requests(path: Path) -> list[bytes]:
    """The whole requests of a segment, each with its trailing fields."""
    return [bytes(message) for message in requests(memoryview(path.read_bytes()))]


def split(signal: str, request: bytes) -> Split | None:
    """Take a request apart; None when it cannot be parsed, or holds one record or none."""
    if signal not in REQUESTS:
        return None
    make, names = REQUESTS[signal], _NAMES[signal]
    parsed = make()
    try:
        parsed.ParseFromString(request)
    except DecodeError:
        return None
    own = stamp(parsed)
    count = sum(1 for _ in _records(parsed, names))
    if own is None or count < 2:  # noqa: PLR2004  one record cannot be parted
        return None

    def only(chosen: Container[int]) -> bytes:
        return stamped(_filtered(make(), parsed, names, chosen).SerializeToString(), own)

    return Split(count, only)


def _records(parsed: Message, names: tuple[str, str, str]) -> Iterable[Message]:
    resources, scopes, records = names
    held = chain.from_iterable(getattr(resource, scopes) for resource in getattr(parsed, resources))
    return chain.from_iterable(getattr(scope, records) for scope in held)


def _filtered(target: Any, parsed: Any, names: tuple[str, str, str], chosen: Container[int]) -> Message:
    """Copy the chosen records with what stands around them."""
    resources, scopes, records = names
    number = 0
    for resource in getattr(parsed, resources):
        kept_resource = None
        for scope in getattr(resource, scopes):
            held = getattr(scope, records)
            kept = [record for at, record in enumerate(held, number) if at in chosen]
            number += len(held)
            if not kept:
                continue
            if kept_resource is None:
                kept_resource = getattr(target, resources).add()
                kept_resource.CopyFrom(resource)
                kept_resource.ClearField(scopes)
            kept_scope = getattr(kept_resource, scopes).add()
            kept_scope.CopyFrom(scope)
            kept_scope.ClearField(records)
            getattr(kept_scope, records).extend(kept)
    filtered: Message = target
    return filtered


def is_rest(path: Path) -> bool:
    """Whether pieces were cut out of this segment before.

    Raises:
        ValueError: The file has no header of a version that is known.
    """
    return "parted" in read_header(path)


def write_segment(path: Path, facts: Mapping[str, Any], held: Sequence[bytes], *, durable: bool = True) -> None:
    """Write a whole segment and make its bytes durable; its name is the caller's to make so.

    Raises:
        OSError: The disk refused; what is there is not to be used.
    """
    with path.open("wb") as file:
        file.write(header_message(**facts) + b"".join(map(framed, held)))
        file.flush()
        if durable:
            os.fdatasync(file.fileno())


def write_parts(spool_dir: Path, segment: Segment, rest: Sequence[bytes], bad: Sequence[tuple[bytes, Refusal]]) -> None:
    """Leave the rest under the segment's name and id, and the bad requests as segments of their own set aside.

    Raises:
        OSError: The disk refused; the segment is as it was, or as it becomes, and nothing in between.
    """
    facts = read_header(segment.path)
    folder = spool_dir / FOLDER / segment.signal
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    successor = folder / f"{segment.id}.rest"
    try:
        for number, (request, refusal) in enumerate(bad):
            draft = folder / f"{segment.id}-{number}{_DRAFT}"
            write_segment(draft, facts, [request])
            write_refusal(draft, refusal._replace(part_of=segment.id))
        write_segment(successor, {**facts, "parted": len(bad)}, rest)
        sync_directory(folder)
        successor.rename(segment.path)
        sync_directory(segment.path.parent)
    finally:
        successor.unlink(missing_ok=True)
        finish_parting(spool_dir)


def finish_parting(spool_dir: Path) -> None:
    """Give the pieces of parted segments their names; those of a segment that is whole yet are of no use.

    Called after a parting and at the writer's start, for one that a crash cut short. A segment that is gone was
    stored without them.
    """
    for draft in sorted(spool_dir.glob(f"{FOLDER}/*/*{_DRAFT}")):
        origin = spool_dir / draft.parent.name / f"{draft.stem.rpartition('-')[0]}.pb"
        if origin.exists() and not _is_rest(origin):
            draft.unlink(missing_ok=True)
            reason_path(draft).unlink(missing_ok=True)
        else:
            draft.rename(draft.with_suffix(".pb"))
            sync_directory(draft.parent)


def _is_rest(path: Path) -> bool:
    with contextlib.suppress(ValueError):
        return is_rest(path)
    return False


def mark_stored_in_part(spool_dir: Path, segment: Segment) -> None:
    """Note beside the pieces of a segment that some table knew its id when the rest came."""
    for piece in spool_dir.glob(f"{FOLDER}/{segment.signal}/{segment.id}-*.pb"):
        write_refusal(piece, read_refusal(piece)._replace(stored_in_part=True))
