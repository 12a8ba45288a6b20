"""A batch of encoded telemetry, from encoder to collector."""

from __future__ import annotations

import gzip
import zlib
from typing import NamedTuple

from axonize_core.cpus import yielding

__all__ = ["Batch", "pack", "unpacked"]

# Level 3 takes 0.9 us a span and leaves 44 of 507 bytes, level 6 2.1 us and 42 (512 spans of ours, one core).
_GZIP_LEVEL = 3
_GZIP_FORMAT = zlib.MAX_WBITS | 16
_PIECE_BYTES = 4096


class Batch(NamedTuple):
    """One OTLP request body as it is sent; ``items`` spans or samples; ``created_ns`` is epoch time."""

    body: bytes
    items: int
    created_ns: int
    gzipped: bool


def pack(body: bytes, items: int, now_ns: int, gzip_bytes: int | None) -> Batch:
    """Compress a body of ``gzip_bytes`` and more; None leaves all as they are."""
    if gzip_bytes is None or len(body) < gzip_bytes:
        return Batch(body, items, now_ns, gzipped=False)
    compress = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_FORMAT)
    pieces = [compress.compress(body[at : at + _PIECE_BYTES]) for at in yielding(range(0, len(body), _PIECE_BYTES))]
    return Batch(b"".join((*pieces, compress.flush())), items, now_ns, gzipped=True)


def unpacked(batch: Batch) -> bytes:
    """Return the body as it was before compression."""
    return gzip.decompress(batch.body) if batch.gzipped else batch.body
