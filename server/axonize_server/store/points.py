"""Metric data points of the five OTLP types, brought into one shape."""

from __future__ import annotations

__all__ = ["POINT", "POINTS"]

_NULL = "NULL"
_NONE = "[]"
_DEFAULTS = {
    "type": "''",
    "temporality": "toInt32(0)",
    "monotonic": "false",
    "attributes": "d.attributes",
    "start": "d.start_time_unix_nano",
    "time": "d.time_unix_nano",
    "flags": "d.flags",
    "exemplars": "d.exemplars",
    "value_int": _NULL,
    "value_float": _NULL,
    "count": _NULL,
    "sum": _NULL,
    "min": _NULL,
    "max": _NULL,
    "bucket_counts": _NONE,
    "explicit_bounds": _NONE,
    "scale": _NULL,
    "zero_count": _NULL,
    "zero_threshold": _NULL,
    "positive_offset": _NULL,
    "positive_counts": _NONE,
    "negative_offset": _NULL,
    "negative_counts": _NONE,
    "quantiles": _NONE,
    "quantile_values": _NONE,
}
_NUMBER = {"value_int": "d.as_int", "value_float": "d.as_double"}
_DISTRIBUTION = {"count": "d.count", "sum": "d.sum", "min": "d.min", "max": "d.max"}
_TYPES = {
    "gauge": _NUMBER,
    "sum": {
        **_NUMBER,
        "temporality": "m.sum.aggregation_temporality",
        "monotonic": "m.sum.is_monotonic",
    },
    "histogram": {
        **_DISTRIBUTION,
        "temporality": "m.histogram.aggregation_temporality",
        "bucket_counts": "d.bucket_counts",
        "explicit_bounds": "d.explicit_bounds",
    },
    "exponential_histogram": {
        **_DISTRIBUTION,
        "temporality": "m.exponential_histogram.aggregation_temporality",
        "scale": "d.scale",
        "zero_count": "d.zero_count",
        "zero_threshold": "d.zero_threshold",
        "positive_offset": "d.positive.offset",
        "positive_counts": "d.positive.bucket_counts",
        "negative_offset": "d.negative.offset",
        "negative_counts": "d.negative.bucket_counts",
    },
    "summary": {
        "exemplars": _NONE,
        "count": "d.count",
        "sum": "d.sum",
        "quantiles": "arrayMap(q -> q.quantile, d.quantile_values)",
        "quantile_values": "arrayMap(q -> q.value, d.quantile_values)",
    },
}


def _points(kind: str, own: dict[str, str]) -> str:
    values = {**_DEFAULTS, **own, "type": f"'{kind}'"}
    return f"arrayMap(d -> tuple({', '.join(values.values())}), m.{kind}.data_points)"


POINT = tuple(_DEFAULTS)
"""The parts of a data point, in the order of the tuples in `POINTS`."""

POINTS = f"arrayConcat({', '.join(_points(kind, own) for kind, own in _TYPES.items())})"
"""All data points of a metric `m`, as an array of tuples."""
