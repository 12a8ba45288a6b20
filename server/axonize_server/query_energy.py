"""What GPUs used: the rise of their energy counters, which several agents may have read.

A counter is the device's, so agents that watch one GPU see one rise, each from an origin of its own. Time that any of
them watched counts once: intervals between two readings of one agent are laid end to end in order of their ends, and of
an interval that overlaps what is covered already only the rest counts, at the interval's own mean power. So two agents
never double a joule, and one that takes over from another loses none.
"""
# ruff: noqa: S608  - only the database's name, a checked identifier, is put into the text

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axonize_server.store.clickhouse import ClickHouseStore

__all__ = ["energies"]

_READINGS = """
    SELECT hw_id, agent, toUnixTimestamp64Milli(gpu_metrics.time) AS t, max(energy_j) AS counter
    FROM {database}.gpu_metrics
    WHERE tenant = {{tenant:String}} AND compute_resource = hw_id AND energy_j IS NOT NULL
        AND gpu_metrics.time >= fromUnixTimestamp64Nano({{since:Int64}}, 'UTC')
        AND gpu_metrics.time <= fromUnixTimestamp64Nano({{until:Int64}}, 'UTC')
    GROUP BY hw_id, agent, t"""
_INTERVALS = """
    SELECT hw_id, agent, t, counter - any(counter) OVER before AS rise, any(t) OVER before AS began
    FROM ({readings})
    WINDOW before AS (PARTITION BY hw_id, agent ORDER BY t ROWS BETWEEN 1 PRECEDING AND 1 PRECEDING)"""
_UNCOVERED = """
    SELECT hw_id, agent, rise, t, began,
        greatest(began, max(t) OVER before) AS after
    FROM ({intervals})
    WHERE began > 0
    WINDOW before AS (PARTITION BY hw_id ORDER BY t, agent ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"""


def energies(store: ClickHouseStore, *, tenant: str, since_ns: int, until_ns: int) -> list[dict[str, Any]]:
    """Give what each GPU used between two times, as far as agents watched it then.

    Returns:
        One of each GPU with two readings or more: `gpu_uuid`, `energy_j` (J), `agents` (how many read it). A counter
        that fell was reset: that interval is nothing.

    Raises:
        StoreError: The store is away.
    """
    uncovered = _UNCOVERED.format(intervals=_INTERVALS.format(readings=_READINGS.format(database=store.database)))
    return store.query(
        "SELECT hw_id AS gpu_uuid, sum(greatest(rise, 0) * (t - after) / (t - began)) AS energy_j,"
        f" uniqExact(agent) AS agents FROM ({uncovered}) GROUP BY hw_id ORDER BY hw_id",
        {"tenant": tenant, "since": since_ns, "until": until_ns},
    )
