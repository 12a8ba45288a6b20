"""Segments as a test writes and reads them."""

from __future__ import annotations

import os

from axonize_server import spool
from axonize_server.appender import Appender, Limits, Usage
from axonize_server.spool import messages

DAY = 20_000


def make(spool_dir, *, max_bytes=1 << 30, signal="traces", **limits):
    return Appender(spool_dir, signal, Usage(spool_dir, max_bytes), Limits(**limits))


def put(appender, body=b"body", *, records=1, tenant="default", received_ns=7, days=frozenset({DAY})):
    return appender.append(body, records=records, tenant=tenant, received_ns=received_ns, days=days)


def bodies(path):
    """The requests in a segment, without header and trailing fields of the tenant 'default'."""
    whole = [bytes(message) for message, _ in messages(memoryview(path.read_bytes()))]
    own = len(spool.request_frame(b"", tenant="default", received_ns=0)[1])
    return [message[:-own] for message in whole[1:]]


def die(appender):
    """Leave the files as a killed receiver does: open, without their locks."""
    for segment in [*appender._closing, *([appender._current] if appender._current else [])]:
        if segment.fd >= 0:
            os.close(segment.fd)
