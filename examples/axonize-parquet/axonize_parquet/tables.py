"""The tables: each column's name, type, and where its value comes from. Times are UTC, unknown is null."""

from __future__ import annotations

import json
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["BATCHES", "DECODES", "GPU_SAMPLES", "PREFILLS", "REQUESTS", "Table"]

TIME = pa.timestamp("ns", tz="UTC")
TEXT, INTEGER, FLOAT, FLAG = pa.string(), pa.int64(), pa.float64(), pa.bool_()
SHORT = pa.dictionary(pa.int32(), pa.string())
MEMBERS = pa.list_(pa.uint64())


class Column(NamedTuple):
    """One column and how an event fills it."""

    name: str
    type: pa.DataType
    value: Callable[[Any], Any]


class Table(NamedTuple):
    """One kind of event."""

    name: str
    columns: tuple[Column, ...]

    def schema(self) -> pa.Schema:
        """Return the Arrow schema."""
        return pa.schema([(column.name, column.type) for column in self.columns])

    def rows(self, events: Sequence[Any]) -> pa.Table:
        """Return events as rows."""
        arrays = [pa.array([column.value(event) for event in events], column.type) for column in self.columns]
        return pa.Table.from_arrays(arrays, schema=self.schema())


def _fields(kind: pa.DataType, *names: str) -> tuple[Column, ...]:
    return tuple(Column(name, kind, attrgetter(name)) for name in names)


_SOURCE = (
    Column("service", SHORT, attrgetter("source.service_name")),
    Column("instance_id", SHORT, attrgetter("source.instance_id")),
    Column("engine", SHORT, attrgetter("source.engine")),
    Column("model", SHORT, attrgetter("source.model")),
)
_TIMES = (Column("start_time", TIME, attrgetter("start_ns")), *_fields(INTEGER, "duration_ns"))
# trace_id as the command line and every tracing tool writes it, so that rows and spans can be joined.
_REQUEST_REF = (
    Column("request_seq", INTEGER, attrgetter("ref.seq")),
    Column("trace_id", TEXT, lambda event: f"{event.ref.trace_id:032x}"),
)
_INCOMPLETE = _fields(FLAG, "incomplete")

REQUESTS = Table(
    "requests",
    (
        *_SOURCE,
        *_REQUEST_REF,
        *_TIMES,
        *_fields(TEXT, "request_id", "operation", "finish_reason", "error"),
        *_fields(INTEGER, "queue_ns", "ttft_ns", "input_tokens", "output_tokens"),
        *_fields(FLOAT, "tpot_ns"),
        Column("attributes", TEXT, lambda event: json.dumps(dict(event.attributes), default=str)),
        *_INCOMPLETE,
    ),
)
PREFILLS = Table("prefills", (*_SOURCE, *_REQUEST_REF, *_TIMES, *_fields(INTEGER, "tokens", "steps"), *_INCOMPLETE))
DECODES = Table(
    "decodes",
    (
        *_SOURCE,
        *_REQUEST_REF,
        *_TIMES,
        *_fields(INTEGER, "tokens", "steps", "itl_p50_ns", "itl_p99_ns", "itl_max_ns"),
        *_INCOMPLETE,
    ),
)
BATCHES = Table(
    "batches",
    (
        *_SOURCE,
        Column("step_seq", INTEGER, attrgetter("seq")),
        *_TIMES,
        *_fields(MEMBERS, "request_seqs", "prefill_tokens", "decode_tokens", "context_tokens"),
        *_INCOMPLETE,
    ),
)
GPU_SAMPLES = Table(
    "gpu_samples",
    (
        *_fields(SHORT, "compute_resource", "physical_gpu", "name", "provenance"),
        Column("time", TIME, attrgetter("time_ns")),
        *_fields(FLOAT, "utilization", "power_w", "energy_j", "temperature_c"),
        *_fields(INTEGER, "memory_used_bytes"),
    ),
)
