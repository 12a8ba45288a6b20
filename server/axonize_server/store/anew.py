"""A segment encoded anew, as every encoder writes, for the statement that takes nothing else (attributes.py)."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from axonize_server.spool import framed, messages, request_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["REQUESTS", "encoded_anew", "stamp", "stamped"]

REQUESTS: Final[dict[str, type[Message]]] = {
    "traces": ExportTraceServiceRequest,
    "metrics": ExportMetricsServiceRequest,
    "logs": ExportLogsServiceRequest,
}
_TENANT, _RECEIVED = 1001, 1002


@contextlib.contextmanager
def encoded_anew(path: Path, signal: str) -> Iterator[Path]:
    """Give a copy of a segment whose requests are encoded as protobuf's own library does; it is gone in the end.

    What is no whole request of ours, the header say, stays as it is.

    Raises:
        OSError: The segment cannot be read, or the copy not be written.
    """
    data = memoryview(path.read_bytes())
    with tempfile.TemporaryDirectory(prefix="axonize-") as folder:
        copy = Path(folder) / path.name
        with copy.open("wb") as file:
            for message, _ in messages(data):
                file.write(framed(_anew(bytes(message), REQUESTS[signal])))
        yield copy


def _anew(request: bytes, kind: type[Message]) -> bytes:
    try:
        parsed = kind.FromString(request)
    except DecodeError:
        return request
    if (own := stamp(parsed)) is None:
        return request
    parsed.DiscardUnknownFields()
    return stamped(parsed.SerializeToString(), own)


def stamp(request: Message) -> tuple[str, int] | None:
    """Give the tenant and the time of receipt (ns since the epoch) behind a request; None where it has none."""
    unknown: Any = UnknownFieldSet(request)
    own = {field.field_number: field.data for field in unknown if field.field_number in (_TENANT, _RECEIVED)}
    return (own[_TENANT].decode(), own[_RECEIVED]) if len(own) == 2 else None  # noqa: PLR2004  both of them


def stamped(body: bytes, own: tuple[str, int]) -> bytes:
    """Give a request with its trailing fields."""
    return body + request_frame(body, tenant=own[0], received_ns=own[1])[1]
