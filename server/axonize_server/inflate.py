"""gzip bodies, inflated no further than the limit."""

from __future__ import annotations

from isal import isal_zlib

from axonize_core.errors import AxonizeError
from axonize_server.otlp import InvalidRequestError

__all__ = ["InflatedTooLargeError", "inflate"]

_GZIP = 31  # zlib's window bits for a gzip frame
_MAX_MEMBERS = 4096
_STEP_BYTES = 64 << 10  # the rest behind a member is copied, so only the first may be looked for in all of it
_RESERVED_FLAGS = 0xE0


class InflatedTooLargeError(AxonizeError):
    """A body that would be larger than the limit once inflated."""


def inflate(body: bytes | memoryview, limit: int) -> bytes:
    """The contents of all members of a gzip body.

    Raises:
        InflatedTooLargeError: There is more than `limit` bytes in it.
        InvalidRequestError: It is broken, or cut short.
    """
    data, parts = memoryview(body), [b""]
    room, at, step = limit, 0, len(body)
    while at < len(data) or at == 0:
        if len(parts) > _MAX_MEMBERS:
            raise InvalidRequestError(f"the gzip body has more than {_MAX_MEMBERS} members; send it in one")
        member, at = _member(data, at, step, room)
        room -= len(member)
        parts.append(member)
        step = _STEP_BYTES
    return parts[1] if len(parts) == 2 else b"".join(parts)  # noqa: PLR2004 - the usual one member


def _member(data: memoryview, at: int, step: int, room: int) -> tuple[bytes, int]:
    """The contents of the member at an offset, which is fed in such steps, and where it ends."""
    if len(data) > at + 3 and data[at + 3] & _RESERVED_FLAGS:
        raise InvalidRequestError("the body is no gzip: reserved flags are set")
    inflater = isal_zlib.decompressobj(wbits=_GZIP)
    parts: list[bytes] = []
    while not inflater.eof:
        if at >= len(data):
            raise InvalidRequestError("the gzip body is cut short")
        fed, at = data[at : at + step], at + step
        try:
            part = inflater.decompress(fed, max_length=room + 1)
        except isal_zlib.IsalError as error:  # type: ignore[misc]  # the stub declares an instance
            raise InvalidRequestError(f"the body is no gzip: {error}") from error
        room -= len(part)
        if room < 0:
            raise InflatedTooLargeError("the body is larger than the limit once inflated; send less at once")
        parts.append(part)
    whole = parts[0] if len(parts) == 1 else b"".join(parts)
    return whole, min(at, len(data)) - len(inflater.unused_data)
