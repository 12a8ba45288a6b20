"""gzip bodies, inflated no further than the limit."""

from __future__ import annotations

from isal import isal_zlib

from axonize_core.errors import AxonizeError
from axonize_server.otlp import InvalidRequestError

__all__ = ["InflatedTooLargeError", "inflate"]

_GZIP = 31  # zlib's window bits for a gzip frame


class InflatedTooLargeError(AxonizeError):
    """A body that would be larger than the limit once inflated."""


def inflate(body: bytes | memoryview, limit: int) -> bytes:
    """The contents of all members of a gzip body.

    Raises:
        InflatedTooLargeError: There is more than `limit` bytes in it.
        InvalidRequestError: It is broken, or cut short.
    """
    parts: list[bytes] = []
    room, rest = limit, bytes(body)
    while rest or not parts:
        member, rest = _member(rest, room)
        room -= len(member)
        parts.append(member)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _member(data: bytes, room: int) -> tuple[bytes, bytes]:
    inflater = isal_zlib.decompressobj(wbits=_GZIP)
    try:
        member = inflater.decompress(data, max_length=room + 1)
    except isal_zlib.IsalError as error:  # type: ignore[misc]  # the stub declares an instance
        raise InvalidRequestError(f"the body is no gzip: {error}") from error
    if len(member) > room:
        raise InflatedTooLargeError("the body is larger than the limit once inflated; send less at once")
    if not inflater.eof:
        raise InvalidRequestError("the gzip body is cut short")
    return member, inflater.unused_data
