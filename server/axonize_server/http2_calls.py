"""What an HTTP/2 connection and the application behind it say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from axonize_server.buffers import Buffers
    from axonize_server.http2 import Connection
    from axonize_server.http2_engine import Headers

__all__ = ["Answer", "Application", "Call", "Fault", "Http2Limits"]


@dataclass(frozen=True)
class Http2Limits:
    """What a client may take of us; times in seconds."""

    connections: int = 768
    streams: int = 128  # of one connection; more wait at the client
    requests: int = 1024  # of all connections; more are told to try again
    header_bytes: int = 16 << 10
    frame_bytes: int = 1 << 20
    window_bytes: int = 4 << 20  # of a stream
    handshake_s: float = 10.0
    body_s: float = 60.0
    ack_s: float = 30.0
    idle_s: float = 120.0
    answer_s: float = 30.0
    linger_s: float = 5.0


class Fault(Enum):
    """Why a call is answered that was not served."""

    TOO_LARGE = auto()
    NO_ROOM = auto()
    LATE = auto()  # its body
    UNSYNCED = auto()  # in time


class Answer(NamedTuple):
    """Headers, and behind a body trailers; without trailers the headers end the call."""

    headers: Headers
    body: bytes = b""
    trailers: Headers = ()


class Call:
    """One request of a connection, from its headers to the end of its answer."""

    __slots__ = (
        "arrived",
        "body",
        "context",
        "deadline",
        "left",
        "limit_bytes",
        "size",
        "stream_id",
        "trailers",
        "unreturned",
    )

    def __init__(self, stream_id: int, deadline: float) -> None:
        self.stream_id, self.deadline = stream_id, deadline
        self.context: tuple[str, bool] = "", False  # the application's
        self.limit_bytes = 0
        self.body = bytearray()
        self.size = 0  # of the body, wherever it is
        self.unreturned = 0  # bytes of the stream's window
        self.arrived = False
        self.left = b""  # of the answer's body
        self.trailers: Headers = ()


class Application(Protocol):
    """What serves the calls of all connections."""

    limits: Http2Limits
    buffers: Buffers
    connections: set[Connection]
    calls: int  # under way

    def begin(self, call: Call, headers: dict[bytes, bytes], connection: Connection) -> None:
        """Set the call's context and `limit_bytes`, or answer at once."""

    def serve(self, call: Call, body: bytes | bytearray | memoryview, connection: Connection) -> None:
        """Answer by `connection.respond`, now or later; the body is valid until this returns."""

    def fault(self, call: Call, fault: Fault, connection: Connection) -> None:
        """Answer a call that cannot be served."""

    def refused(self, reason: str) -> None:
        """Count a connection that is ended for what its client does."""
