"""Which GPUs, slices and contexts there are, or were at a time, and what they read; which engines serve on them.

Who held what comes from the registry, readings and rates from the store, in the shapes of ARCHITECTURE.md §9.
"""
# ruff: noqa: S608  - only the database's name, a checked identifier, and our own column lists are put into the text

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from axonize_server.registry.layers import rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterable

    from axonize_server.registry.base import Registry
    from axonize_server.store.clickhouse import ClickHouseStore

__all__ = ["READING_AGE_S", "UNSEEN_AFTER_S", "engines", "gpus"]

Row = dict[str, Any]

UNSEEN_AFTER_S = 86_400
"""A resource that nobody reported for a day is history, though nobody saw it go."""

READING_AGE_S = 120
"""Readings older than this are no reading of that time."""

_NS = 10**9
_GPU = (
    *("gpu_uuid", "model", "vendor", "architecture", "node", "pci_bus_id", "memory_bytes", "driver_version"),
    *("mig_enabled", "provenance", "first_seen_at", "last_seen_at", "gone_at"),
)
_RESOURCE = (
    *("uuid", "generation", "gpu_uuid", "kind", "mig_profile", "gpu_instance_id", "compute_instance_id"),
    *("placement_start", "placement_size", "memory_bytes", "sm_share", "provenance"),
    *("first_seen_at", "last_seen_at", "gone_at"),
)
_CONTEXT = (
    *("context_id", "compute_resource", "gpu_uuid", "device", "host", "pid", "instance_id", "service", "engine"),
    *("rank", "container", "pod", "namespace", "node", "sharing", "provenance"),
    *("valid_from", "valid_to", "last_seen_at"),
)
_FIELDS = ("utilization", "memory_used_bytes", "memory_total_bytes", "power_w", "energy_j", "temperature_c")


def gpus(
    registry: Registry,
    store: ClickHouseStore,
    *,
    tenant: str,
    at_ns: int | None = None,
    compute_resource: str | None = None,
    node: str | None = None,
) -> Row:
    """Give the tree of the three layers as it is now, or as it was at a time.

    Args:
        registry: who held what.
        store: the readings.
        tenant: whose contexts; the hardware is everybody's.
        at_ns: when, ns since the epoch; None is now.
        compute_resource: only this resource, by its uuid.
        node: only GPUs of this machine.

    Raises:
        StoreError: One of the two is away.
    """
    moment_ns = time.time_ns() if at_ns is None else at_ns
    with registry.reading() as run:
        then = _there(moment_ns, past=at_ns is not None)
        devices = _rows(run(f"SELECT {', '.join(_GPU)} FROM physical_gpus WHERE {then[0]}", then[1]), _GPU)
        resources = _rows(
            run(f"SELECT {', '.join(_RESOURCE)} FROM compute_resources WHERE {then[0]}", then[1]), _RESOURCE
        )
        held = _held(moment_ns, past=at_ns is not None)
        contexts = _rows(
            run(
                f"SELECT {', '.join(_CONTEXT)} FROM resource_contexts WHERE tenant_id = %s AND {held[0]}",
                (tenant, *held[1]),
            ),
            _CONTEXT,
        )
    readings = _readings(store, tenant, moment_ns)
    tree = _tree(devices, resources, contexts, readings)
    if compute_resource is not None:
        tree = _only(tree, compute_resource)
    return {
        "at": rfc3339(moment_ns),
        "gpus": [gpu for gpu in tree if node is None or gpu["node"] == node],
    }


def _there(moment_ns: int, *, past: bool) -> tuple[str, tuple[str, ...]]:
    """Give the condition on what was there: seen lately and not gone; a report of now may be a little ahead of us."""
    moment, seen = rfc3339(moment_ns), rfc3339(max(0, moment_ns - UNSEEN_AFTER_S * _NS))
    if not past:
        return "gone_at IS NULL AND last_seen_at >= %s", (seen,)
    return "first_seen_at <= %s AND (gone_at IS NULL OR gone_at > %s) AND last_seen_at >= %s", (moment, moment, seen)


def _held(moment_ns: int, *, past: bool) -> tuple[str, tuple[str, ...]]:
    moment = rfc3339(moment_ns)
    if not past:
        return "valid_to IS NULL", ()
    return "valid_from <= %s AND (valid_to IS NULL OR valid_to > %s)", (moment, moment)


def _rows(found: Iterable[tuple[Any, ...]], columns: tuple[str, ...]) -> list[Row]:
    return [dict(zip(columns, row, strict=True)) for row in found]


def _tree(devices: list[Row], resources: list[Row], contexts: list[Row], readings: dict[str, Row]) -> list[Row]:
    """Hang contexts on resources and resources on GPUs; what nobody described yet is there by its id alone."""
    tree = {row["gpu_uuid"]: _device(row, readings) for row in devices}
    placed: dict[str, Row] = {}
    for row in resources:
        placed[row["uuid"]] = _resource(row, readings)
        _gpu_of(tree, row["gpu_uuid"], readings)["compute_resources"].append(placed[row["uuid"]])
    for row in contexts:
        uuid = row["compute_resource"] or row["gpu_uuid"]
        if uuid not in placed:
            unknown = dict.fromkeys(_RESOURCE) | {
                "uuid": uuid,
                "gpu_uuid": row["gpu_uuid"],
                "provenance": row["provenance"],
            }
            placed[uuid] = _resource(unknown, readings)
            _gpu_of(tree, row["gpu_uuid"], readings)["compute_resources"].append(placed[uuid])
        placed[uuid]["contexts"].append(
            {name: row[name] for name in _CONTEXT if name not in ("compute_resource", "gpu_uuid")}
        )
    for gpu in tree.values():
        gpu["compute_resources"].sort(key=_place)
        for resource in gpu["compute_resources"]:
            resource["contexts"].sort(key=lambda c: (c["valid_from"], c["context_id"]))
    return sorted(tree.values(), key=lambda gpu: (gpu["node"] or "", gpu["pci_bus_id"] or "", gpu["gpu_uuid"] or ""))


def _gpu_of(tree: dict[str, Row], gpu_uuid: str, readings: dict[str, Row]) -> Row:
    if gpu_uuid not in tree:
        tree[gpu_uuid] = _device(dict.fromkeys(_GPU) | {"gpu_uuid": gpu_uuid}, readings)
    return tree[gpu_uuid]


def _device(row: Row, readings: dict[str, Row]) -> Row:
    sliced = row["mig_enabled"]
    return {
        **row,
        "mig_enabled": None if sliced is None else bool(sliced),
        "reading": readings.get(row["gpu_uuid"]),
        "compute_resources": [],
    }


def _resource(row: Row, readings: dict[str, Row]) -> Row:
    named = {
        "compute_resource": row["uuid"],
        **{name: row[name] for name in _RESOURCE if name not in ("uuid", "gpu_uuid")},
    }
    return {**named, "reading": readings.get(row["uuid"]), "contexts": []}


def _place(resource: Row) -> tuple[int, int, int, str]:
    """The order on the chip: the whole, then slices as they lie."""
    numbers = (resource["placement_start"], resource["gpu_instance_id"], resource["compute_instance_id"])
    start, gpu_instance, compute_instance = (-1 if number is None else number for number in numbers)
    return start, gpu_instance, compute_instance, resource["compute_resource"] or ""


def _only(tree: list[Row], uuid: str) -> list[Row]:
    kept = []
    for gpu in tree:
        resources = [resource for resource in gpu["compute_resources"] if resource["compute_resource"] == uuid]
        if resources:
            kept.append({**gpu, "compute_resources": resources})
    return kept


def _readings(store: ClickHouseStore, tenant: str, moment_ns: int) -> dict[str, Row]:
    """Give the newest reading of each resource: of each field the newest there is, none older than two minutes."""
    newest = ", ".join(f"{_value(name)} AS {name}" for name in _FIELDS)
    rows = store.query(
        f"SELECT compute_resource, concat(replaceOne(toString(max(gpu_metrics.time)), ' ', 'T'), 'Z') AS time,"
        f" {newest},"
        f" argMax(provenance, gpu_metrics.time) AS provenance FROM {store.database}.gpu_metrics"
        " WHERE tenant = {tenant:String}"
        " AND gpu_metrics.time > fromUnixTimestamp64Nano({after:Int64}, 'UTC')"
        " AND gpu_metrics.time <= fromUnixTimestamp64Nano({until:Int64}, 'UTC')"
        " GROUP BY compute_resource SETTINGS prefer_column_name_to_alias = 1",
        {
            "tenant": tenant,
            "after": max(0, moment_ns - READING_AGE_S * _NS),
            "until": moment_ns + _NS,
        },
    )
    return {row.pop("compute_resource"): row for row in rows}


def _value(field: str) -> str:
    """Give the newest reading; what the store keeps as a decimal is a float to JSON."""
    newest = f"argMax({field}, gpu_metrics.time)"
    return newest if field.endswith("_bytes") else f"toFloat64({newest})"


def minutes(store: ClickHouseStore, *, tenant: str, compute_resource: str, since_ns: int) -> list[Row]:
    """Give a resource's readings by minute, oldest first: the mean of utilization (0 to 1) and power (W), and maxima.

    The first minute is the one that holds `since_ns` (epoch).
    """
    return store.query(
        "SELECT concat(replaceOne(toString(m.minute), ' ', 'T'), 'Z') AS minute,"
        " avgMerge(m.utilization) AS utilization, toFloat64(max(m.utilization_max)) AS utilization_max,"
        " avgMerge(m.power_w) AS power_w, toFloat64(max(m.power_w_max)) AS power_w_max,"
        " max(m.memory_used_bytes_max) AS memory_used_bytes_max,"
        " toFloat64(max(m.temperature_c_max)) AS temperature_c_max, any(m.provenance) AS provenance"
        f" FROM {store.database}.gpu_metrics_1m AS m"
        " WHERE m.tenant = {tenant:String} AND m.compute_resource = {resource:String}"
        " AND m.minute >= toStartOfMinute(fromUnixTimestamp64Nano({since:Int64}, 'UTC'))"
        " GROUP BY m.minute ORDER BY m.minute",
        {"tenant": tenant, "resource": compute_resource, "since": since_ns},
    )


def engines(store: ClickHouseStore, *, tenant: str, window_s: float) -> list[Row]:
    """Give what each serving process and model did per second, over the last `window_s` seconds.

    Requests count when they end. Tokens count in the step that computed them; of a process whose steps are not
    reported, when the request ends.
    """
    now_ns = time.time_ns()
    bound = {"tenant": tenant, "since": max(0, now_ns - int(window_s * _NS)), "day": max(0, now_ns - 86_400 * _NS)}
    per_step = store.query(
        "SELECT instance_id, service, engine, model, sum(decode_tokens) AS decoded, sum(prefill_tokens) AS prefilled,"
        " groupUniqArrayIf(compute_resource, compute_resource != '') AS resources"
        f" FROM {store.database}.batches WHERE tenant = {{tenant:String}}"
        " AND start_time >= fromUnixTimestamp64Nano({since:Int64}, 'UTC')"
        " GROUP BY instance_id, service, engine, model",
        bound,
    )
    ended = store.query(
        "SELECT instance_id, service, engine, model, count() AS requests, countIf(status_code = 2) AS errors,"
        " sum(output_tokens) AS decoded, sum(input_tokens) AS prefilled, quantile(0.5)(ttft_ms) AS ttft_p50_ms,"
        " groupUniqArrayIf(compute_resource, compute_resource != '') AS resources"
        f" FROM {store.database}.spans WHERE tenant = {{tenant:String}} AND phase = 'request'"
        " AND start_time >= fromUnixTimestamp64Nano({day:Int64}, 'UTC')"
        " AND toUnixTimestamp64Nano(start_time) + duration_ns >= {since:Int64}"
        " GROUP BY instance_id, service, engine, model",
        bound,
    )
    return _rates(per_step, ended, window_s)


def _rates(per_step: list[Row], ended: list[Row], window_s: float) -> list[Row]:
    names = ("instance_id", "service", "engine", "model")
    steps = {tuple(row[name] for name in names): row for row in per_step}
    requests = {tuple(row[name] for name in names): row for row in ended}
    found = []
    for key in sorted(steps.keys() | requests.keys()):
        done, step = requests.get(key, {}), steps.get(key, {})
        counted = step or done
        found.append(
            {
                **{name: value or None for name, value in zip(names, key, strict=True)},
                "compute_resources": sorted({*done.get("resources", ()), *step.get("resources", ())}),
                "requests_per_s": done.get("requests", 0) / window_s,
                "errors_per_s": done.get("errors", 0) / window_s,
                "input_tokens_per_s": _per_s(counted.get("prefilled"), window_s),
                "output_tokens_per_s": _per_s(counted.get("decoded"), window_s),
                "ttft_p50_ms": done.get("ttft_p50_ms"),
            }
        )
    return found


def _per_s(count: int | None, window_s: float) -> float | None:
    return None if count is None else count / window_s
