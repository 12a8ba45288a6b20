"""Finding what the store refuses in a segment: requests first, then the records inside a bad request.

Everything is tried in a copy of the tables, so looking leaves no trace in the real ones. What is found is cut out
by `parting`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from axonize_server.parting import read_requests, split, write_segment
from axonize_server.poison import UNDECIDED, Budget, poisonous
from axonize_server.refused import FOLDER, Refusal
from axonize_server.spool import read_header
from axonize_server.store.clickhouse import StoreUnreachableError
from axonize_server.store.trial import trial

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from axonize_server.settings import Settings
    from axonize_server.spool import Segment
    from axonize_server.store.clickhouse import ClickHouseStore

__all__ = ["ATTEMPTS", "SECONDS", "Sifted", "sift"]

ATTEMPTS: Final = 100
"""Inserts tried for one segment; one bad record of 65,536 takes about 35."""
SECONDS: Final = 30.0


class Sifted(NamedTuple):
    """A refused segment taken apart."""

    rest: list[bytes]
    """The requests the store takes, in their order, without the bad records."""
    bad: list[tuple[bytes, Refusal]]
    stored_in_part: bool
    """Whether rows of the segment may be in the store already."""


def sift(
    store: ClickHouseStore, settings: Settings, segment: Segment, halted: Callable[[], bool], attempts: int = ATTEMPTS
) -> Sifted:
    """Part what the store takes from what it refuses; the segment's file is left as it is.

    Args:
        store: Where the segment was refused.
        settings: The collector's; the copy of the tables is made by them.
        segment: One that was refused.
        halted: Whether to give up, asked before each attempt.
        attempts: Inserts that may be tried.

    Raises:
        StoreUnreachableError: It cannot be tried now, or is to stop.
        StoreError: No copy of the tables can be made.
        OSError: The disk refused.
    """
    facts = read_header(segment.path)
    candidate = settings.spool_dir / FOLDER / segment.signal / f"{segment.id}.candidate"
    candidate.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with trial(store, settings) as tried:

            def refusal(held: Sequence[bytes]) -> str | None:
                if halted():
                    raise StoreUnreachableError(f"segment {segment.id!r}: told to stop while looking for what is bad")
                write_segment(candidate, facts, held, durable=False)
                return tried.refusal(candidate, segment.signal, facts["settings"])

            held, budget = read_requests(segment.path), Budget(attempts, SECONDS)
            rest, bad = _sorted_out(segment.signal, held, refusal, budget, together=False)
            if rest and refusal(rest) is not None:  # each is good, and all of them are too much for one statement
                rest, bad = _sorted_out(segment.signal, held, refusal, budget, together=True)
            in_part = tried.stored_rows(segment.signal) > 0
    finally:
        candidate.unlink(missing_ok=True)
    return Sifted(rest, [(one, why._replace(stored_in_part=in_part)) for one, why in bad], in_part)


def _sorted_out(
    signal: str, held: list[bytes], refusal: Callable[[Sequence[bytes]], str | None], budget: Budget, *, together: bool
) -> tuple[list[bytes], list[tuple[bytes, Refusal]]]:
    def tried(chosen: Sequence[int]) -> str | None:
        return refusal([held[index] for index in chosen])

    reasons = poisonous(len(held), tried, budget, together=together)
    kept: dict[int, bytes] = {index: one for index, one in enumerate(held) if index not in reasons}
    bad = []
    for index, reason in reasons.items():
        beside = list(kept.values()) if together else []
        good, refused = _within(signal, held[index], beside, refusal, budget, reason)
        if good is not None:
            kept[index] = good
        bad.append(refused)
    return [one for _, one in sorted(kept.items())], bad


def _within(
    signal: str,
    request: bytes,
    beside: list[bytes],
    refusal: Callable[[Sequence[bytes]], str | None],
    budget: Budget,
    reason: str,
) -> tuple[bytes | None, tuple[bytes, Refusal]]:
    """Part a bad request into its good records, if there are any, and the bad ones with why."""
    whole = None, (request, Refusal(reason, "undecided" if reason == UNDECIDED else "data"))
    parts = split(signal, request) if reason != UNDECIDED else None
    if parts is None:
        return whole

    def tried(chosen: Sequence[int]) -> str | None:
        return refusal([*beside, parts.only(set(chosen))])

    reasons = poisonous(parts.records, tried, budget, together=bool(beside))
    good = set(range(parts.records)) - set(reasons)
    if not good or not reasons:
        return whole
    told = f"{len(reasons)} of {parts.records} records: {next(iter(reasons.values()))}"
    return parts.only(good), (parts.only(set(reasons)), Refusal(told, "data"))
