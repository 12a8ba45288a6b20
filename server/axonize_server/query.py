"""The questions the store answers, in the shapes of ARCHITECTURE.md §9.

Values that come from outside reach ClickHouse as bound parameters only. A tenant sees its own rows.
"""
# ruff: noqa: S608  - only the database's name, a checked identifier, is put into the text

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from axonize_server.query_triton import add_queue_times
from axonize_server.store.spans import COLUMNS, TypedSpan, json_span, typed_span

if TYPE_CHECKING:
    from axonize_server.store.clickhouse import ClickHouseStore

__all__ = ["batches", "requests", "spans_of", "trace"]

Row = dict[str, Any]

_TIME = "concat(replaceOne(toString(start_time), ' ', 'T'), 'Z')"
_LONGEST_REQUEST_NS = 86_400 * 10**9
_NO_END_NS = 2**63 - 1
_OF_TRACE = "tenant = {tenant:String} AND trace_id = toFixedString(unhex({trace_id:String}), 16)"
_REQUEST = f"""
    lower(hex(trace_id)) AS trace_id, lower(hex(span_id)) AS span_id, lower(hex(parent_span_id)) AS parent_span_id,
    nullIf(request_id, '') AS request_id, request_seq, nullIf(instance_id, '') AS instance_id,
    service, model, nullIf(engine, '') AS engine, nullIf(operation, '') AS operation,
    {_TIME} AS start_time, duration_ns / 1e6 AS duration_ms,
    round(toFloat64(queue_ms), 4) AS queue_ms, if(queue_ms IS NULL, NULL, 'engine') AS queue_provenance,
    round(toFloat64(ttft_ms), 4) AS ttft_ms,
    round(toFloat64(tpot_ms), 4) AS tpot_ms, input_tokens, output_tokens,
    nullIf(finish_reason, '') AS finish_reason, if(status_code = 2, 'error', 'ok') AS status,
    nullIf(error_type, '') AS error_type, incomplete,
    nullIf(compute_resource, '') AS compute_resource, nullIf(gpu_provenance, '') AS gpu_provenance"""
_BATCH = f"""
    lower(hex(trace_id)) AS trace_id, lower(hex(span_id)) AS span_id, step_seq,
    nullIf(instance_id, '') AS instance_id, service, nullIf(engine, '') AS engine, model,
    {_TIME} AS start_time, toUnixTimestamp64Nano(batches.start_time) AS start_ns, duration_ns / 1e6 AS duration_ms,
    schedule_ns / 1e6 AS schedule_ms, execute_ns / 1e6 AS execute_ms, update_ns / 1e6 AS update_ms,
    device_ns / 1e6 AS device_ms, ifNull(size, length(member_request_seq)) AS size, prefill_tokens, decode_tokens,
    running, waiting, toFloat64(kv_cache_usage) AS kv_cache_usage,
    nullIf(compute_resource, '') AS compute_resource, nullIf(gpu_provenance, '') AS gpu_provenance,
    member_request_seq, member_prefill_tokens, member_decode_tokens, member_context_tokens"""


def requests(
    store: ClickHouseStore,
    *,
    tenant: str,
    limit: int = 50,
    since_s: float = 900,
    service: str | None = None,
    model: str | None = None,
    status: str | None = None,
) -> list[Row]:
    """Give the newest requests that started in the last `since_s` seconds; `status` is "ok" or "error"."""
    wanted = {"service": service, "model": model}
    filters, parameters = _filters(wanted, tenant, since_s, limit)
    if status is not None:
        filters += " AND (status_code = 2) = {error:Bool}"
        parameters["error"] = status == "error"
    # The aliases repeat column names: the table's own name says which is meant in filters and order.
    rows = store.query(
        f"SELECT {_REQUEST} FROM {store.database}.spans WHERE phase = 'request' AND {filters}"
        " ORDER BY spans.start_time DESC, spans.span_id LIMIT {limit:UInt32}"
        " SETTINGS prefer_column_name_to_alias = 1",
        parameters,
    )
    add_queue_times(store, tenant, rows)
    for row in rows:
        del row["parent_span_id"]
    return rows


def trace(store: ClickHouseStore, *, tenant: str, trace_id: str) -> Row | None:
    """Give a trace's spans in start order, as JSON values; None when there are none.

    Args:
        store: where.
        tenant: whose.
        trace_id: 32 hexadecimal digits.
    """
    spans = spans_of(store, tenant=tenant, trace_id=bytes.fromhex(trace_id))
    return {"trace_id": trace_id.lower(), "spans": [json_span(span) for span in spans]} if spans else None


def spans_of(store: ClickHouseStore, *, tenant: str, trace_id: bytes) -> list[TypedSpan]:
    """Give a trace's spans in start order, every value as it was sent.

    Its totals, which are sorted by trace, say when it was and how many spans it has: only that time is looked through.
    They are kept at least as long as spans.
    """
    asked = {"tenant": tenant, "trace_id": trace_id.hex()}
    (total,) = store.query(
        "SELECT sum(traces.spans) AS found, toUnixTimestamp64Nano(min(traces.start_time)) AS first_ns,"
        " toUnixTimestamp64Nano(max(traces.end_time)) AS last_ns"
        f" FROM {store.database}.traces WHERE {_OF_TRACE}",
        asked,
    )
    if not total["found"]:
        return []
    rows = _spans_between(store, asked, total["first_ns"], total["last_ns"])
    if len(rows) < total["found"]:  # some are gone, or one ends before it starts
        rows = _spans_between(store, asked, total["first_ns"], _NO_END_NS)
    return [typed_span(row) for row in rows]


def _spans_between(store: ClickHouseStore, asked: dict[str, str], first_ns: int, last_ns: int) -> list[Row]:
    return store.query(
        f"SELECT {COLUMNS} FROM {store.database}.spans WHERE {_OF_TRACE}"
        " AND spans.start_time BETWEEN fromUnixTimestamp64Nano({first_ns:Int64}, 'UTC')"
        " AND fromUnixTimestamp64Nano({last_ns:Int64}, 'UTC')"
        " ORDER BY spans.start_time, spans.span_id SETTINGS prefer_column_name_to_alias = 1",
        {**asked, "first_ns": first_ns, "last_ns": last_ns},
    )


def batches(
    store: ClickHouseStore,
    *,
    tenant: str,
    limit: int = 50,
    since_s: float = 900,
    service: str | None = None,
    instance_id: str | None = None,
    request_seq: int | None = None,
) -> list[Row]:
    """Give the newest engine steps with their members; `request_seq` asks for the steps a request was in."""
    filters, parameters = _filters({"service": service, "instance_id": instance_id}, tenant, since_s, limit)
    if request_seq is not None:
        filters += " AND has(member_request_seq, {request_seq:UInt64})"
        parameters["request_seq"] = request_seq
    rows = store.query(
        f"SELECT {_BATCH} FROM {store.database}.batches WHERE {filters}"
        " ORDER BY batches.start_time DESC, batches.span_id LIMIT {limit:UInt32}"
        " SETTINGS prefer_column_name_to_alias = 1",
        parameters,
    )
    known = _members_requests(store, tenant, rows)
    return [_batch(row, known) for row in rows]


def _filters(equal: dict[str, str | None], tenant: str, since_s: float, limit: int) -> tuple[str, Row]:
    """Give the conditions that lists share, and what is bound to them; None does not filter."""
    bound: Row = {name: value for name, value in equal.items() if value is not None}
    conditions = [f"{name} = {{{name}:String}}" for name in ("tenant", *bound)]
    conditions.append("start_time >= fromUnixTimestamp64Nano({since_ns:Int64}, 'UTC')")
    since_ns = max(0, time.time_ns() - int(since_s * 1e9))
    return " AND ".join(conditions), {**bound, "tenant": tenant, "since_ns": since_ns, "limit": limit}


def _members_requests(store: ClickHouseStore, tenant: str, rows: list[Row]) -> dict[tuple[str | None, int], Row]:
    """Find the requests that are members of steps, by (instance_id, request_seq)."""
    if not rows:
        return {}
    found = store.query(
        "SELECT instance_id, request_seq, lower(hex(trace_id)) AS trace_id, nullIf(request_id, '') AS request_id"
        f" FROM {store.database}.spans WHERE tenant = {{tenant:String}} AND phase = 'request'"
        " AND instance_id IN {instances:Array(String)} AND request_seq IN {seqs:Array(Int64)}"
        " AND start_time >= fromUnixTimestamp64Nano({first_ns:Int64}, 'UTC')"
        " AND start_time <= fromUnixTimestamp64Nano({last_ns:Int64}, 'UTC')",
        {
            "tenant": tenant,
            "instances": sorted({row["instance_id"] or "" for row in rows}),
            "seqs": sorted({seq for row in rows for seq in row["member_request_seq"]}),
            "first_ns": max(0, min(row["start_ns"] for row in rows) - _LONGEST_REQUEST_NS),
            "last_ns": max(row["start_ns"] for row in rows),
        },
    )
    return {(row["instance_id"] or None, row["request_seq"]): row for row in found}


def _batch(row: Row, known: dict[tuple[str | None, int], Row]) -> Row:
    """Shape a step: the parallel arrays become members, joined with the requests known so far."""
    counts = ("prefill_tokens", "decode_tokens", "context_tokens")
    columns = [row.pop(f"member_{name}") for name in counts]
    members = []
    for position, seq in enumerate(row.pop("member_request_seq")):
        request = known.get((row["instance_id"], seq), {})
        values = {name: _at(column, position) for name, column in zip(counts, columns, strict=True)}
        ids = {"trace_id": request.get("trace_id"), "request_id": request.get("request_id")}
        members.append({"request_seq": seq, **values, **ids})
    del row["start_ns"]
    return {**row, "members": members}


def _at(column: list[int], position: int) -> int | None:
    """Give a member's count; None where the sender left the array out."""
    return column[position] if position < len(column) else None
