"""The spool: what a receiver has acknowledged and the writer has not stored yet.

One directory per signal holds segments. A receiver appends to ``<created_ns>-<uuid>.open`` and holds a lock
on it; sealed, it is renamed to ``.pb``, and its stem is the segment's id. A segment is a stream of
length-delimited OTLP requests, so the whole file is the body of an INSERT (``FORMAT Protobuf``).

Every message ends with our own fields. The last of them is a CRC-32 of everything before it in the message,
so a reader can tell a whole message from a torn one without knowing OTLP.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from isal.isal_zlib import crc32

from axonize_core.errors import AxonizeError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "INSERT_SETTINGS",
    "SEGMENT_VERSION",
    "SIGNALS",
    "Recovered",
    "Segment",
    "SpoolFullError",
    "SpoolUnavailableError",
    "UnknownVersionError",
    "framed",
    "frames",
    "header_message",
    "messages",
    "read_header",
    "recover",
    "remove",
    "request_frame",
    "requests",
    "sealed_segments",
    "sync_directory",
]

SIGNALS: Final = ("traces", "metrics", "logs")
SEGMENT_VERSION: Final = 1
# One segment becomes one block, so that its id identifies the insert however often it is repeated.
INSERT_SETTINGS: Final[dict[str, int]] = {
    "async_insert": 0,
    "insert_deduplicate": 1,
    "max_threads": 1,
    "max_insert_threads": 1,
    "max_block_size": 1 << 20,
    "max_insert_block_size": 1 << 20,
    "min_insert_block_size_rows": 1 << 20,
    "min_insert_block_size_bytes": 1 << 30,
}

_LENGTH_DELIMITED, _FIXED32, _FIXED64 = 2, 5, 1
_MORE = 0x80  # the bit of a varint's byte that says another one follows


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= _MORE:
        out.append(value & 0x7F | _MORE)
        value >>= 7
    out.append(value)
    return bytes(out)


_HEADER_TAG = _varint(1000 << 3 | _LENGTH_DELIMITED)
_TENANT_TAG = _varint(1001 << 3 | _LENGTH_DELIMITED)
_RECEIVED_TAG = _varint(1002 << 3 | _FIXED64)
_CRC_TAG = _varint(1003 << 3 | _FIXED32)
_CRC_FIELD_BYTES = len(_CRC_TAG) + 4


class SpoolFullError(AxonizeError):
    """The spool has reached its bound; try again when the writer has caught up."""


class SpoolUnavailableError(AxonizeError):
    """The file system refused (no space, I/O error); what was being appended is not stored."""


class UnknownVersionError(ValueError):
    """A segment of a newer Axonize; what it means is not guessed."""


class Segment(NamedTuple):
    """One sealed file of the spool; ``id`` is the token that makes its insert happen once."""

    path: Path
    id: str
    signal: str
    created_ns: int
    size_bytes: int
    written_ns: int = 0
    """When the file was last written, epoch; 0 unknown. Unlike the name it is true after a clock was put right."""

    def age_s(self, now_ns: int) -> float:
        """How long it waits, as of `now_ns` (epoch); 0 where the clock says less."""
        since = min(self.created_ns, self.written_ns or self.created_ns)
        return max(0, now_ns - since) / 1e9


class Recovered(NamedTuple):
    """What `recover` did with one file of a dead receiver; ``kept`` and ``cut`` are in messages and bytes."""

    path: Path
    kept_messages: int
    cut_bytes: int


def request_frame(body: bytes | bytearray | memoryview, *, tenant: str, received_ns: int) -> tuple[bytes, bytes]:
    """What stands before and after a request in a segment: its length, and our trailing fields."""
    name = tenant.encode()
    own = _TENANT_TAG + _varint(len(name)) + name + _RECEIVED_TAG + struct.pack("<Q", received_ns)
    trailer = own + _crc_field(crc32(own, crc32(body)))
    return _varint(len(body) + len(trailer)), trailer


def header_message(signal: str, **facts: Any) -> bytes:
    """The first message of a segment, with its length: version and insert settings, no OTLP field.

    Args:
        signal: What the requests are of.
        facts: More to say, or to say instead; of a segment made from another one what that said.
    """
    said = {"version": SEGMENT_VERSION, "signal": signal, "settings": INSERT_SETTINGS, **facts}
    text = json.dumps(said, separators=(",", ":")).encode()
    own = _HEADER_TAG + _varint(len(text)) + text
    message = own + _crc_field(crc32(own))
    return _varint(len(message)) + message


def framed(message: bytes | memoryview) -> bytes:
    """A message with its length before it, as it stands in a segment."""
    return _varint(len(message)) + message


def _crc_field(value: int) -> bytes:
    return _CRC_TAG + struct.pack("<I", value)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sealed_segments(spool_dir: Path) -> list[Segment]:
    """The segments ready to be stored, oldest first, of all signals."""
    found = [segment for path in spool_dir.glob("*/*.pb") if (segment := _segment(path)) is not None]
    return sorted(found, key=lambda segment: (segment.created_ns, segment.id))


def _segment(path: Path) -> Segment | None:
    created, _, unique = path.stem.partition("-")
    try:
        found = path.stat()
        named = path, path.stem, path.parent.name, int(created)
        return Segment(*named, found.st_size, found.st_mtime_ns) if unique else None
    except (FileNotFoundError, ValueError):  # removed meanwhile; or not one of ours
        return None


def remove(segment: Segment) -> None:
    """Delete a stored segment; one that is gone already is no error.

    Its name may come back after a power failure: its id then makes the second insert a no-op.
    """
    segment.path.unlink(missing_ok=True)


def messages(data: memoryview) -> Iterator[tuple[memoryview, int]]:
    """The whole messages of a segment, header first, each with the offset behind it; ends at the first torn one."""
    for message, end, whole in frames(data):
        if not whole:
            return
        yield message, end


def frames(data: memoryview) -> Iterator[tuple[memoryview, int, bool]]:
    """The messages as their lengths part them, with the offset behind each and whether its checksum holds.

    Ends where a length, or the bytes it announces, are not all there. Behind a message whose checksum fails
    the lengths may be wrong as well.
    """
    at = 0
    while (framed := _frame(data, at)) is not None:
        start, at = framed
        message = data[start:at]
        yield message, at, len(message) >= _CRC_FIELD_BYTES and _crc_holds(message)


def requests(data: memoryview) -> Iterator[memoryview]:
    """The requests of a segment with their trailing fields, which OTLP's own messages skip as unknown."""
    for number, (message, _) in enumerate(messages(data)):
        if number:
            yield message


def _frame(data: memoryview, at: int) -> tuple[int, int] | None:
    """Start and end of the message at an offset, or None when its length or its bytes are not all there."""
    length = shift = 0
    for index in range(at, min(at + 5, len(data))):
        byte = data[index]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < _MORE:
            end = index + 1 + length
            return (index + 1, end) if end <= len(data) else None
    return None


def _crc_holds(message: memoryview) -> bool:
    own, last = message[:-_CRC_FIELD_BYTES], bytes(message[-_CRC_FIELD_BYTES:])
    return last == _crc_field(crc32(own))


def read_header(path: Path) -> dict[str, Any]:
    """The version and settings frozen in a segment.

    Raises:
        ValueError: The file does not begin with a whole header.
        UnknownVersionError: A newer Axonize wrote it.
    """
    with path.open("rb") as file:
        start = memoryview(file.read(64 << 10))
    for message, _ in messages(start):
        own = bytes(message[:-_CRC_FIELD_BYTES])
        if own.startswith(_HEADER_TAG):
            try:
                facts: dict[str, Any] = json.loads(own[own.index(b"{") :])
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{str(path)!r} is not a segment: its header is no JSON: {error}") from error
            _check_version(path, facts.get("version"))
            return facts
        break
    raise ValueError(f"{str(path)!r} is not a segment: it has no header")


def _check_version(path: Path, version: object) -> None:
    if version != SEGMENT_VERSION:
        raise UnknownVersionError(
            f"{str(path)!r} has segment version {version!r}, and this Axonize reads {SEGMENT_VERSION}:"
            " install the version that wrote it or a later one, then `axonize spool replay`"
        )


def recover(spool_dir: Path) -> list[Recovered]:
    """Seal what dead receivers left open, each file cut behind its last whole message.

    Files of living receivers are locked and left alone. A message that was acknowledged was synced whole, so
    the cut takes only what no client was told is safe.
    """
    done = [_recover_file(path) for path in sorted(spool_dir.glob("*/*.open"))]
    return [recovered for recovered in done if recovered is not None]


def _recover_file(path: Path) -> Recovered | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # sealed by its receiver, or recovered by another process
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return _cut_and_seal(path, fd) if path.exists() else None  # sealed between open and lock
    except BlockingIOError:
        return None
    finally:
        os.close(fd)


def _cut_and_seal(path: Path, fd: int) -> Recovered:
    kept, good, written = _measured(fd)
    if not kept:
        path.unlink(missing_ok=True)
        return Recovered(path, 0, written - good)
    os.ftruncate(fd, good)
    os.fsync(fd)
    sealed = path.rename(path.with_suffix(".pb"))
    sync_directory(path.parent)
    return Recovered(sealed, kept, written - good)


def _measured(fd: int) -> tuple[int, int, int]:
    """How many whole requests a file holds, where they end, and where its bytes end without the padding."""
    if not (size := os.fstat(fd).st_size):
        return 0, 0, 0
    with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as view:
        ends = [end for _, end in messages(view)]
        good = ends[-1] if ends else 0
        return max(len(ends) - 1, 0), good, good + len(bytes(view[good:]).rstrip(b"\0"))
