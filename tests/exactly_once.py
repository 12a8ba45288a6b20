"""Every record of a store with its number of rows, and every rollup beside the sum it must be."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from axonize_server.store.clickhouse import ClickHouseStore

__all__ = ["Stored", "look"]

# A table behind a view, and what of its source it must add up to. A segment that counts twice in one of them, or in
# one and not the other, shows here.
_SUMS = {
    "traces.spans": ("sum(spans) FROM {db}.traces", "count() FROM {db}.spans"),
    "traces.output_tokens": (
        "ifNull(sum(output_tokens), 0) FROM {db}.traces",
        "ifNull(sum(output_tokens), 0) FROM {db}.spans WHERE phase = 'request'",
    ),
    "requests_1m.requests": ("sum(requests) FROM {db}.requests_1m", "count() FROM {db}.spans WHERE phase = 'request'"),
    "requests_1m.output_tokens": (
        "ifNull(sum(output_tokens), 0) FROM {db}.requests_1m",
        "ifNull(sum(output_tokens), 0) FROM {db}.spans WHERE phase = 'request'",
    ),
    "batches": ("count() FROM {db}.batches", "count() FROM {db}.spans WHERE phase = 'batch'"),
    "gpu_inventory": (
        "count() FROM {db}.gpu_inventory",
        "count() FROM {db}.metrics WHERE name = 'axonize.gpu.info'",
    ),
    "gpu_metrics": (
        "uniqExact(hw_id, time) FROM {db}.gpu_metrics",
        "uniqExact(attrs_string['hw.id'], toDateTime64(time, 3)) FROM {db}.metrics WHERE startsWith(name, 'hw.')",
    ),
}
_IDS = {
    "spans": "hex(span_id) FROM {db}.spans",
    "batches": "hex(span_id) FROM {db}.batches",
    "metrics": "attrs_string['test.id'] FROM {db}.metrics WHERE attrs_string['test.id'] != ''",
    "logs": "body FROM {db}.logs",
}


class Stored(NamedTuple):
    """What a store holds."""

    rows: dict[str, Counter[str]]
    """By table, the rows of each id."""
    sums: dict[str, tuple[int, int]]
    """By rollup, what it says and what its source adds up to."""

    @property
    def doubled(self) -> dict[str, int]:
        """By table, how many ids have more than one row."""
        return {table: sum(n > 1 for n in rows.values()) for table, rows in self.rows.items()}

    @property
    def unequal(self) -> dict[str, tuple[int, int]]:
        """The rollups that say something else than their source."""
        return {name: (told, true) for name, (told, true) in self.sums.items() if told != true}


def look(store: ClickHouseStore) -> Stored:
    """Read all of it."""

    def ask(sql: str) -> list[dict[str, object]]:
        return store.query("SELECT " + sql.format(db=store.database))

    rows = {
        table: Counter(str(row["id"]) for row in ask(sql.replace(" FROM", " AS id FROM", 1)))
        for table, sql in _IDS.items()
    }
    sums = {
        name: tuple(int(str(ask(sql.replace(" FROM", " AS n FROM", 1))[0]["n"])) for sql in pair)
        for name, pair in _SUMS.items()
    }
    return Stored(rows, sums)
