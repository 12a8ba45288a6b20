"""When one thing (a GPU, a slice, a context) was reported present and when gone; reports may come in any order.

A thing's sightings are sets that only ever grow, so that late, repeated and reordered reports end in the same state:

- *looks*: what was said about it (its attributes, as canonical JSON text), each with the times it was said. Times at
  most `GAP_NS` apart, with no zero between them, are one interval: agents report once a minute, and a day of that is
  one pair of numbers.
- *zeros*: when an agent said that it is gone. At one time a zero comes before a one.

`spans_of` reads the history out of that. Times are ns since the epoch, always of the report, never of its arrival.
A zero that comes so late that it falls inside an interval tears it (`is_torn`): only the reports themselves tell where
the parts ended and began, so the store is asked for them once more (`retold`).
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["GAP_NS", "Interval", "Sightings", "Span", "is_torn", "link", "merge", "retold", "spans_of"]

GAP_NS = 180 * 10**9
"""Silence after which presence is no longer taken for granted: three missed reports."""

_SAME_NEWS_NS = 120 * 10**9
"""Within this time another agent's zero is the same news: agents notice a change one after the other."""

_MOST_ZEROS = 1000

Interval = tuple[int, int]
Zero = tuple[int, str]


class Sightings(msgspec.Struct, array_like=True):
    """All that was reported about one thing; `rows` is how many rows were made of it."""

    looks: dict[str, list[Interval]] = {}
    zeros: list[Zero] = []
    rows: int = 0


class Span(NamedTuple):
    """One stretch of a thing's history; half-open, and no two of a thing overlap."""

    first_ns: int
    last_ns: int
    """Last seen."""
    ended_ns: int | None
    """When it was found gone; None where nobody said so, or something else took its place before."""
    looks: tuple[str, ...]
    """What was said about it meanwhile, newest last."""


def link(intervals: Iterable[Interval], cuts: Sequence[int] = (), gap_ns: int = GAP_NS) -> list[Interval]:
    """Join intervals that overlap or are at most a gap apart, but not across a cut; the result is in order.

    Args:
        intervals: first and last time of each.
        cuts: sorted times; one at the beginning of an interval lies before it.
        gap_ns: the widest gap.
    """
    linked: list[Interval] = []
    for first, last in sorted(intervals):
        if linked and first - (end := linked[-1][1]) <= gap_ns and not (cuts and _between(cuts, end, first)):
            if last > end:
                linked[-1] = (linked[-1][0], last)
        else:
            linked.append((first, last))
    return linked


def _between(cuts: Sequence[int], after: int, until: int) -> bool:
    return bisect_right(cuts, after) < bisect_right(cuts, until)


def merge(known: Sightings, new: Sightings) -> Sightings:
    """Give both together; the order of merging makes no difference, nor does merging twice.

    Args:
        known: not torn by `new`.
        new: each report by itself: an interval of it is one point of time, or holds no zero of anybody.
    """
    if known.looks.keys() == new.looks.keys() and len(known.looks) == 1 and not (known.zeros or new.zeros):
        ((look, intervals),) = known.looks.items()
        return Sightings({look: link([*intervals, *new.looks[look]])}, [], known.rows)
    zeros = known.zeros
    if new.zeros:
        zeros = sorted({*known.zeros, *new.zeros})[-_MOST_ZEROS:]
    cuts = [time_ns for time_ns, _ in zeros]
    looks = {
        look: link([*known.looks.get(look, ()), *new.looks.get(look, ())], cuts)
        for look in {**known.looks, **new.looks}
    }
    return Sightings(looks, zeros, known.rows)


def is_torn(known: Sightings, new: Sightings) -> bool:
    """Say whether a new zero falls inside what was joined before it was known."""
    intervals = [interval for found in known.looks.values() for interval in found]
    return any(first < time_ns <= last for time_ns, _ in new.zeros for first, last in intervals)


def retold(known: Sightings, points: Sightings) -> Sightings:
    """Give the sightings with everything since the first of these points told by them alone."""
    since = min((first for found in points.looks.values() for first, _ in found), default=None)
    if since is None:
        return known
    before = {
        look: [(first, min(last, since)) for first, last in found if first < since]
        for look, found in known.looks.items()
    }
    looks = {look: found for look, found in before.items() if found}
    return merge(Sightings(looks, known.zeros, known.rows), points)


def spans_of(known: Sightings, variant: Callable[[str], str] = lambda _: "") -> list[Span]:
    """Read the history out of the sightings, in order.

    Args:
        known: the sightings.
        variant: what of a look makes it another thing in the same place, such as the resource a context is on.
    """
    if len(known.looks) == 1 and not known.zeros:
        ((look, intervals),) = known.looks.items()
        return [Span(first, last, None, (look,)) for first, last in intervals]
    changes = _changes(known.zeros)
    variants: dict[str, list[str]] = {}
    for look in sorted(known.looks):
        variants.setdefault(variant(look), []).append(look)
    pieces = _pieces(
        {
            name: link((interval for look in looks for interval in known.looks[look]), changes)
            for name, looks in variants.items()
        }
    )
    spans = []
    for at, (first, last, name) in enumerate(pieces):
        change = bisect_right(changes, last)
        ended = changes[change] if change < len(changes) else None
        if ended is not None and at + 1 < len(pieces) and pieces[at + 1][0] < ended:
            ended = None
        spans.append(Span(first, last, ended, _said(known, variants[name], first, last)))
    return spans


def _changes(zeros: Iterable[Zero]) -> list[int]:
    """Give the times at which the thing went away; one agent's zeros are many, several agents' soon after are one."""
    changes: list[int] = []
    agents: set[str] = set()
    for time_ns, agent in sorted(zeros):
        if changes and agent not in agents and time_ns - changes[-1] <= _SAME_NEWS_NS:
            agents.add(agent)
        else:
            changes.append(time_ns)
            agents = {agent}
    return changes


def _pieces(intervals: dict[str, list[Interval]]) -> list[tuple[int, int, str]]:
    """Where several variants claim one time, give it to the one that began last."""
    claims = sorted((first, last, name) for name, found in intervals.items() for first, last in found)
    if len(intervals) == 1:
        return claims
    edges = sorted({*(first for first, _, _ in claims), *(last + 1 for _, last, _ in claims)})
    pieces: list[tuple[int, int, str]] = []
    owner_before = None
    for start, stop in pairwise(edges):
        # Claims are in order of their beginning: the last that holds here began last.
        owner = next((claim for claim in reversed(claims) if claim[0] <= start <= claim[1]), None)
        if owner is not None and owner is owner_before:
            pieces[-1] = (pieces[-1][0], min(stop, owner[1]), owner[2])
        elif owner is not None:
            pieces.append((start, min(stop, owner[1]), owner[2]))
        owner_before = owner
    return pieces


def _said(known: Sightings, looks: Sequence[str], first_ns: int, last_ns: int) -> tuple[str, ...]:
    """Give the looks of a stretch, the one said last at the end."""
    heard = []
    for look in looks:
        times = [min(last, last_ns) for first, last in known.looks[look] if first <= last_ns and last >= first_ns]
        if times:
            heard.append((max(times), look))
    return tuple(look for _, look in sorted(heard))
