"""How long requests of Triton queued, out of Triton's own spans: its models' processes do not see that.

With ``--trace-config mode=opentelemetry`` the span of a model has the event QUEUE_START, the ``compute`` span below it
COMPUTE_START. Our request's span is below the same one, so both are known by its parent.
"""
# ruff: noqa: S608  - only the database's name, a checked identifier, is put into the text

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from axonize_server.store.clickhouse import ClickHouseStore

__all__ = ["add_queue_times"]

_QUEUED, _COMPUTED = "QUEUE_START", "COMPUTE_START"


def add_queue_times(store: ClickHouseStore, tenant: str, rows: list[dict[str, Any]]) -> None:
    """Give requests that have no queue time of their own Triton's, where its spans are in the same trace.

    Args:
        store: where they are.
        tenant: whose.
        rows: requests with ``trace_id`` and ``parent_span_id`` in hexadecimal; ``queue_ms`` and ``queue_provenance``
            ("triton") are filled in.
    """
    lacking = [row for row in rows if row["queue_ms"] is None and row["engine"] == "triton"]
    if not lacking:
        return
    found = store.query(
        "SELECT lower(hex(trace_id)) AS trace_id, name = 'compute' AS computed,"
        " lower(hex(if(name = 'compute', parent_span_id, span_id))) AS model_span,"
        " arrayMap(t -> toUnixTimestamp64Nano(t), events.time) AS times, events.name AS names"
        f" FROM {store.database}.spans WHERE tenant = {{tenant:String}} AND scope_name = 'triton-server'"
        " AND trace_id IN arrayMap(t -> toFixedString(unhex(t), 16), {traces:Array(String)})"
        f" AND (has(events.name, '{_QUEUED}') OR has(events.name, '{_COMPUTED}'))"
        " SETTINGS prefer_column_name_to_alias = 1",
        {"tenant": tenant, "traces": sorted({row["trace_id"] for row in lacking})},
    )
    times: dict[tuple[str, str], dict[str, int]] = {}
    for span in found:
        told = dict(zip(span["names"], span["times"], strict=True))
        known = times.setdefault((span["trace_id"], span["model_span"]), {})
        known.update({event: int(told[event]) for event in (_QUEUED, _COMPUTED) if event in told})
    for row in lacking:
        known = times.get((row["trace_id"], row["parent_span_id"]), {})
        if _QUEUED in known and _COMPUTED in known:
            row["queue_ms"] = round((known[_COMPUTED] - known[_QUEUED]) / 1e6, 4)
            row["queue_provenance"] = "triton"
