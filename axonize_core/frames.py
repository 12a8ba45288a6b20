"""What crosses the socket between an inference process and its agent.

Runs in both. The table of record kinds and the framing stand in ARCHITECTURE.md §3 and §4.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "MAX_FRAME_BYTES",
    "PROTOCOL",
    "Bye",
    "Frame",
    "FrameDecoder",
    "FrameError",
    "Hello",
    "Kind",
    "Record",
    "Records",
    "Status",
    "StatusRequest",
    "Welcome",
    "count_events",
    "encode_frame",
    "encode_record",
]

PROTOCOL = 1
"""Raised when an older agent could no longer read what a newer engine sends."""

MAX_FRAME_BYTES = 4 * 1024 * 1024
_LENGTH = struct.Struct("<I")


class FrameError(ValueError):
    """The peer sent bytes that are no frame; the connection cannot be read any further."""


class Record(msgspec.Struct, array_like=True, gc=False):
    """What ``emit`` leaves behind; ``t_ns`` is ``time.perf_counter_ns()`` of the inference process.

    A struct and not a tuple: a tenth less time in a hot ``emit`` and less memory, and unknown to Python's garbage
    collector, which would otherwise walk the queue on the engine's thread. It is never in a cycle.
    """

    kind: int
    handle: int
    payload: Any
    t_ns: int


class Kind(IntEnum):
    """Record kinds; numbers are wire format and never reused."""

    SOURCE = 1
    REQUEST = 2
    RUN = 3
    RUN_TIMES = 4
    RUN_END = 5
    REQUEST_END = 6
    MANY = 7
    """Events of one instant: ``handle`` is how many, ``payload`` is ``(kind, handles, payloads or None)``."""
    STEP = 8
    ANSWER = 9
    STEP_DEVICE = 10
    STEP_COUNTS = 11
    EXECUTE = 12
    EXECUTE_END = 13
    RESPONSE = 14
    REQUEST_FACT = 15


_MANY = int(Kind.MANY)


def count_events(records: list[Record]) -> int:
    """Return how many events these records are; a record of MANY is several."""
    return len(records) + sum([record.handle - 1 for record in records if record.kind == _MANY])


class Hello(msgspec.Struct, array_like=True, tag="hello", frozen=True):
    """First frame of an inference process."""

    protocol: int
    version: str
    pid: int
    instance_id: str
    resource: dict[str, str]
    fingerprint: str


class Records(msgspec.Struct, array_like=True, tag="records", frozen=True):
    """A batch of records in the order in which they were emitted.

    ``wall_ns`` (epoch) and ``mono_ns`` (perf_counter) were read together; ``dropped_total`` counts records
    the process could not keep since it started; ``errors`` counts failures of our own code by place.
    """

    seq: int
    wall_ns: int
    mono_ns: int
    dropped_total: int
    records: list[Record]
    sources: list[tuple[int, Any]] = []
    errors: dict[str, int] = {}


class Bye(msgspec.Struct, array_like=True, tag="bye", frozen=True):
    """The process ends on purpose; without it the agent takes the engine for lost."""

    reason: str


class StatusRequest(msgspec.Struct, array_like=True, tag="status?", frozen=True):
    """Asks the agent for its counters (``axonize doctor``)."""


class Welcome(msgspec.Struct, array_like=True, tag="welcome", frozen=True):
    """The agent's answer to Hello."""

    accepted: bool
    reason: str
    version: str


class Status(msgspec.Struct, array_like=True, tag="status", frozen=True):
    """The agent's counters and facts, by name."""

    facts: dict[str, Any]


Frame = Hello | Records | Bye | StatusRequest | Welcome | Status

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


encode_record = _encoder.encode
"""Encode a record by itself; frames take such bytes, as ``msgspec.Raw``, for the record."""


def encode_frame(frame: Frame) -> bytes:
    """Return the frame as bytes ready for the socket: u32 little-endian length, then msgpack."""
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Cuts a byte stream into frames; keeps what is not complete yet."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield every frame completed by ``data``.

        Raises:
            FrameError: a length above MAX_FRAME_BYTES, or bytes that are no known frame.
        """
        buffer = self._buffer
        buffer += data
        position = 0
        try:
            while len(buffer) - position >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(buffer, position)
                if length > MAX_FRAME_BYTES:
                    raise FrameError(f"frame of {length} bytes is above the limit of {MAX_FRAME_BYTES}")
                start = position + _LENGTH.size
                if len(buffer) - start < length:
                    break
                body = bytes(memoryview(buffer)[start : start + length])
                position = start + length
                try:
                    frame: Frame = _decoder.decode(body)
                except (msgspec.MsgspecError, UnicodeDecodeError) as e:
                    raise FrameError(f"not a frame of protocol {PROTOCOL}: {e}") from e
                yield frame
        finally:
            del buffer[:position]
