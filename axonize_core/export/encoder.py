"""Spans and samples to OTLP bytes, in bodies a collector takes."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeVar

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics

from axonize_core.export.gpu_metrics import gpu_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from axonize_core.events import GpuInfo, GpuSample

__all__ = ["encode_samples", "encoded"]

# The default limit of gRPC servers, the OpenTelemetry Collector's among them.
BODY_BYTES = 4 * 1024 * 1024
logger = logging.getLogger(__name__)
Item = TypeVar("Item")


def encode_samples(samples: Sequence[GpuSample | GpuInfo]) -> bytes:
    """Return one ExportMetricsServiceRequest."""
    body: bytes = encode_metrics(gpu_metrics(samples)).SerializeToString()
    return body


def encoded(
    items: Sequence[Item], encode: Callable[[Sequence[Item]], bytes], body_bytes: int = BODY_BYTES
) -> Iterator[tuple[bytes | None, int]]:
    """Yield bodies and how many items each holds, in order; None for one item that cannot be encoded.

    A body over the limit is halved, and so is one that fails: an item nobody can encode takes no other with it.
    """
    try:
        body = encode(items)
    except Exception as e:  # noqa: BLE001 - the encoder is not ours, nor are the attributes plugins add
        if len(items) == 1:
            logger.error("an item cannot be encoded: %r", e)  # noqa: TRY400 - the line is enough
            yield None, 1
            return
    else:
        if len(body) <= body_bytes or len(items) == 1:
            yield body, len(items)
            return
    half = len(items) // 2
    yield from encoded(items[:half], encode, body_bytes)
    yield from encoded(items[half:], encode, body_bytes)
