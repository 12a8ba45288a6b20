"""What agents reported since a moment, read from the store's `gpu_inventory` as sightings.

A thing reported many times in the same words is one row with the times; repeated reports are one.
"""
# ruff: noqa: S608  - only the database's name, a checked identifier, is put into the text

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from axonize_server.registry.layers import Thing, text_of, thing_of
from axonize_server.registry.sightings import Sightings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from axonize_server.store.clickhouse import ClickHouseStore

__all__ = ["Reports", "read_again", "read_reports", "sightings_of"]

_WINDOW_NS = 600 * 10**9
_AGAIN_NS = 5 * 10**9
_RANGE = (
    "inserted_at > fromUnixTimestamp64Nano({after:Int64}, 'UTC')"
    " AND inserted_at <= fromUnixTimestamp64Nano({until:Int64}, 'UTC')"
)


class Reports(NamedTuple):
    """Everything reported that came in up to `until_ns` (the store's clock)."""

    until_ns: int
    sightings: dict[Thing, Sightings]
    more: bool
    """Whether more came in afterwards than is read at once."""


def read_reports(store: ClickHouseStore, after_ns: int) -> Reports | None:
    """Read what came in after a moment, at most ten minutes of it; None when nothing did.

    The seconds before that moment are read again: rows of an insert under way become visible a little after others.

    Raises:
        StoreError: The store is away.
    """
    bounds = store.query(
        "SELECT toUnixTimestamp64Nano(min(inserted_at)) AS first, toUnixTimestamp64Nano(max(inserted_at)) AS last,"
        f" count() AS n FROM {store.database}.gpu_inventory"
        " WHERE inserted_at > fromUnixTimestamp64Nano({after:Int64}, 'UTC')",
        {"after": after_ns},
    )[0]
    if not bounds["n"]:
        return None
    until_ns = min(bounds["last"], bounds["first"] + _WINDOW_NS)
    asked = {"after": max(0, after_ns - _AGAIN_NS), "until": until_ns}
    return Reports(until_ns, _ask(store, _RANGE, asked), more=until_ns < bounds["last"])


def read_again(store: ClickHouseStore, things: Iterable[Thing]) -> dict[Thing, Sightings]:
    """Read all reports about some things that the store still has.

    Raises:
        StoreError: The store is away.
    """
    wanted = list(things)
    asked = {"layers": sorted({thing.layer for thing in wanted}), "ids": [thing.id for thing in wanted]}
    found = _ask(store, "layer IN {layers:Array(String)} AND id IN {ids:Array(String)}", asked)
    return {thing: found[thing] for thing in wanted if thing in found}


def _ask(store: ClickHouseStore, condition: str, asked: dict[str, Any]) -> dict[Thing, Sightings]:
    present = store.query(
        "SELECT tenant, layer, id, attributes, arraySort(groupUniqArray(toUnixTimestamp64Nano(time))) AS times"
        f" FROM {store.database}.gpu_inventory WHERE present AND {condition} GROUP BY tenant, layer, id, attributes",
        asked,
    )
    gone = store.query(
        "SELECT tenant, layer, id, agent, groupUniqArray(toUnixTimestamp64Nano(time)) AS times"
        f" FROM {store.database}.gpu_inventory WHERE NOT present AND {condition} GROUP BY tenant, layer, id, agent",
        asked,
    )
    return sightings_of(present, gone)


def sightings_of(present: Iterable[dict[str, Any]], gone: Iterable[dict[str, Any]]) -> dict[Thing, Sightings]:
    """Give the sightings of each thing out of the store's rows."""
    found: dict[Thing, Sightings] = {}
    for row in present:
        looks = found.setdefault(_thing(row), Sightings({}, [])).looks
        looks.setdefault(_look(row["attributes"]), []).extend((time_ns, time_ns) for time_ns in row["times"])
    for row in gone:
        zeros = found.setdefault(_thing(row), Sightings({}, [])).zeros
        zeros.extend((time_ns, row["agent"]) for time_ns in row["times"])
    return found


def _thing(row: dict[str, Any]) -> Thing:
    return thing_of(row["layer"], row["tenant"], row["id"].replace("\0", ""))  # PostgreSQL's text holds no NUL


@lru_cache(maxsize=65_536)
def _look(attributes: str) -> str:
    """Give the canonical text of a point's attributes: those of its resource first, its own win."""
    merged: dict[str, Any] = {}
    for part in msgspec.json.decode(attributes):
        merged.update(part)
    return text_of(merged)
