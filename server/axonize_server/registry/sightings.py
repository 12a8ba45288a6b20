"""When one thing (a GPU, a slice, a context) was reported present and when gone; reports may come in any order.

A thing's sightings are three sets that only ever grow, so that late, repeated and reordered reports end in the same
state:

- *looks*: what was said about it (its attributes, as canonical JSON text), each with the times it was said. Times at
  most `GAP_NS` apart are one interval: agents report once a minute, and an hour of that is one pair of numbers.
- *zeros*: when an agent said that it is gone.

`spans_of` reads the history out of that. Times are ns since the epoch, always of the report, never of its arrival.
Where an interval is cut by a zero, what comes after begins at the zero itself: it was back within `GAP_NS`.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["GAP_NS", "Interval", "Sightings", "Span", "link", "merge", "spans_of"]

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
    """When it was found gone; None where nothing was heard of it after `last_ns`, or something else took its place."""
    looks: tuple[str, ...]
    """What was said about it meanwhile, newest last."""


def link(intervals: Iterable[Interval], gap_ns: int = GAP_NS) -> list[Interval]:
    """Join intervals that overlap or are at most a gap apart; the result is in order."""
    linked: list[Interval] = []
    for first, last in sorted(intervals):
        if linked and first - linked[-1][1] <= gap_ns:
            linked[-1] = (linked[-1][0], max(linked[-1][1], last))
        else:
            linked.append((first, last))
    return linked


def merge(known: Sightings, new: Sightings) -> Sightings:
    """Give both together; the order of merging makes no difference, nor does merging twice."""
    looks = dict(known.looks)
    for look, intervals in new.looks.items():
        looks[look] = link([*looks.get(look, ()), *intervals])
    zeros = known.zeros
    if new.zeros:
        zeros = sorted({*map(_zero, known.zeros), *map(_zero, new.zeros)})[-_MOST_ZEROS:]
    return Sightings(looks, zeros, known.rows)


def _zero(found: Sequence[int | str]) -> Zero:
    return int(found[0]), str(found[1])


def spans_of(known: Sightings, variant: Callable[[str], str] = lambda _: "") -> list[Span]:
    """Read the history out of the sightings, in order.

    Args:
        known: the sightings.
        variant: what of a look makes it another thing in the same place, such as the resource a context is on.
    """
    ends = _changes(known.zeros)
    variants: dict[str, list[str]] = {}
    for look in sorted(known.looks):
        variants.setdefault(variant(look), []).append(look)
    intervals = {
        name: link(interval for look in looks for interval in known.looks[look]) for name, looks in variants.items()
    }
    pieces = _pieces(intervals, ends)
    spans = []
    for at, (first, last, name) in enumerate(pieces):
        following = pieces[at + 1][0] if at + 1 < len(pieces) else None
        ended = next((end for end in ends if end > first and end >= last), None)
        if ended is not None and following is not None and following < ended:
            ended = None
        spoken_until = last - (ended == last)
        spans.append(Span(first, last, ended, _said(known, variants[name], first, spoken_until)))
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


def _pieces(intervals: dict[str, list[Interval]], ends: Sequence[int]) -> list[tuple[int, int, str]]:
    """Cut intervals at the ends, and where several variants claim one time give it to the one that began last."""
    claims = [(first, last, name) for name, found in intervals.items() for first, last in found]
    claims.sort(key=itemgetter(0, 2))
    if len(intervals) == 1 and not ends:
        return claims
    edges = sorted({*map(itemgetter(0), claims), *(last + 1 for _, last, _ in claims), *ends})
    pieces: list[tuple[int, int, str]] = []
    for at, start in enumerate(edges[:-1]):
        # Claims are in order of their beginning: the last that holds here began last.
        owner = next((claim for claim in reversed(claims) if claim[0] <= start <= claim[1]), None)
        if owner is None:
            continue
        stop = min(edges[at + 1], owner[1])
        if pieces and pieces[-1][2] == owner[2] and pieces[-1][1] >= start and start not in ends:
            pieces[-1] = (pieces[-1][0], stop, owner[2])
        else:
            pieces.append((start, stop, owner[2]))
    return pieces


def _said(known: Sightings, looks: Sequence[str], first_ns: int, last_ns: int) -> tuple[str, ...]:
    """Give the looks of a stretch, the one said last at the end."""
    heard = []
    for look in looks:
        times = [min(last, last_ns) for first, last in known.looks[look] if first <= last_ns and last >= first_ns]
        if times:
            heard.append((max(times), look))
    return tuple(look for _, look in sorted(heard))
