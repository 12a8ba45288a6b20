"""The spool as a table that fits 80 columns: one line per segment, and below it why each refused one is there."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from axonize_server import units

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from axonize_server.inspect_spool import Listed, Verified

__all__ = ["print_listing", "print_verified"]

_STATES = {"open": "cyan", "sealed": "", "refused": "bold red"}
_SHORTEST_ID = 8
_NS_PER_MS = 10**6


def print_listing(console: Console, found: Sequence[Listed], *, now_ns: int) -> None:
    """Print segments in the order given, ages as of `now_ns` (epoch)."""
    if not found:
        console.print("the spool is empty: everything acknowledged is in the store")
        return
    counts = Counter(listed.state for listed in found)
    console.print(
        ", ".join(f"{count:,} {state}" for state, count in counts.items())
        + f"; {units.bytes_text(sum(listed.size_bytes for listed in found))}"
    )
    names = _names(console, [listed.id for listed in found])
    table = _table("state", "signal", "id", "age", "requests", "records", "size")
    for listed in found:
        age_ms = max(0, now_ns - listed.created_ns) / _NS_PER_MS if listed.created_ns else None
        table.add_row(
            Text(listed.state, _STATES[listed.state]),
            listed.signal,
            names[listed.id],
            _age(age_ms),
            units.count(listed.requests),
            units.count(listed.records),
            units.bytes_text(listed.size_bytes),
        )
    console.print(table)
    for listed in found:
        if listed.refusal is not None:
            stored = " Rows of it may be stored already." if listed.refusal.stored_in_part else ""
            console.print(f"{names[listed.id]} ({listed.refusal.cause}): {listed.refusal.reason}{stored}", markup=False)


def print_verified(console: Console, found: Sequence[Verified]) -> None:
    """Print what is wrong, and how much is not."""
    damaged = [checked for checked in found if checked.problem]
    sound = len(found) - len(damaged)
    console.print(f"{units.plural(len(found), 'segment')} checked: {sound:,} sound, {len(damaged):,} damaged")
    names = _names(console, [checked.id for checked in found])
    for checked in damaged:
        console.print(
            f"{checked.state} {checked.signal} {names[checked.id]}: {checked.problem}"
            f" ({units.plural(checked.requests, 'whole request')} in it)",
            markup=False,
        )


def _table(*titles: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for title in titles:
        table.add_column(title, justify="left" if title in ("state", "signal", "id") else "right", no_wrap=True)
    return table


def _names(console: Console, ids: Iterable[str]) -> dict[str, str]:
    """Each id as it is shown: in full when piped, else the shortest beginning of its unique half that tells it."""
    halves = {one: one.partition("-")[2] or one for one in ids}
    if not console.is_terminal:
        return {one: one for one in halves}
    length = _SHORTEST_ID
    while len({half[:length] for half in halves.values()}) < len(set(halves.values())):
        length += 1
    return {one: half[:length] for one, half in halves.items()}


def _age(ms: float | None) -> str:
    """Hours and days where minutes would be many."""
    minutes = int(ms / 60_000) if ms is not None else 0
    if minutes < 120:  # noqa: PLR2004  two hours: from here hours read better
        return units.duration(ms)
    hours = minutes // 60
    return f"{hours} h" if hours < 48 else f"{hours // 24} d"  # noqa: PLR2004  likewise two days
