"""What is in a spool, looked at from outside and without changing it: for `axonize spool`."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, cast

from google.protobuf.message import DecodeError
from opentelemetry.proto.logs.v1.logs_pb2 import LogsData
from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from axonize_server.refused import FOLDER, Refusal, read_refusal
from axonize_server.spool import frames, messages, read_header, requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Listed", "State", "Verified", "list_spool", "verify"]

State = Literal["open", "sealed", "refused"]
_PATTERNS: Final[dict[State, str]] = {"open": "*/*.open", "sealed": "*/*.pb", "refused": f"{FOLDER}/*/*.pb"}
_LOCKS: Final = Path("/proc/locks")


class Listed(NamedTuple):
    """One file of the spool."""

    path: Path
    id: str
    state: State
    signal: str
    requests: int
    """Whole requests."""
    records: int | None
    """Spans, data points or log records in them; None where they are not protobuf."""
    size_bytes: int
    created_ns: int
    """Epoch, from the name; 0 where the name has none."""
    refusal: Refusal | None


class Verified(NamedTuple):
    """What a file holds and what is wrong with it; sound without `problem`."""

    path: Path
    id: str
    state: State
    signal: str
    requests: int
    problem: str | None


def list_spool(spool_dir: Path) -> list[Listed]:
    """Every segment there is, by state, each oldest first."""
    return [listed for state, path in _files(spool_dir) if (listed := _listed(state, path)) is not None]


def verify(spool_dir: Path) -> list[Verified]:
    """Check every header and every checksum; reads all of the spool and changes nothing."""
    return [checked for state, path in _files(spool_dir) if (checked := _verified(state, path)) is not None]


def _files(spool_dir: Path) -> Iterator[tuple[State, Path]]:
    for state, pattern in _PATTERNS.items():
        for path in sorted(spool_dir.glob(pattern)):
            yield state, path


def _listed(state: State, path: Path) -> Listed | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:  # stored, sealed or put back meanwhile
        return None
    held, signal, created = list(requests(memoryview(data))), path.parent.name, path.stem.partition("-")[0]
    return Listed(
        path=path,
        id=path.stem,
        state=state,
        signal=signal,
        requests=len(held),
        records=_records(signal, held),
        size_bytes=len(data),
        created_ns=int(created) if created.isdigit() else 0,
        refusal=read_refusal(path) if state == "refused" else None,
    )


def _records(signal: str, held: list[memoryview]) -> int | None:
    if signal not in _COUNT:
        return None
    try:
        return sum(map(_COUNT[signal], held))
    except DecodeError:
        return None


def _spans(request: memoryview) -> int:
    resources = TracesData.FromString(cast("bytes", request)).resource_spans
    return sum(len(scope.spans) for resource in resources for scope in resource.scope_spans)


def _log_records(request: memoryview) -> int:
    resources = LogsData.FromString(cast("bytes", request)).resource_logs
    return sum(len(scope.log_records) for resource in resources for scope in resource.scope_logs)


def _points(request: memoryview) -> int:
    resources = MetricsData.FromString(cast("bytes", request)).resource_metrics
    scopes = chain.from_iterable(resource.scope_metrics for resource in resources)
    metrics = chain.from_iterable(scope.metrics for scope in scopes)
    return sum(len(getattr(metric, kind).data_points) for metric in metrics if (kind := metric.WhichOneof("data")))


_COUNT: Final[dict[str, Callable[[memoryview], int]]] = {
    "traces": _spans,
    "metrics": _points,
    "logs": _log_records,
}


def _verified(state: State, path: Path) -> Verified | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    whole = max(sum(whole for _, _, whole in frames(memoryview(data))) - 1, 0)
    problem = _open_problem(path, data) if state == "open" else _sealed_problem(path, data)
    return Verified(path, path.stem, state, path.parent.name, whole, problem)


def _sealed_problem(path: Path, data: bytes) -> str | None:
    """The first fault of a file that must be whole from beginning to end."""
    if not data:
        return "it is empty"
    at = 0
    for number, (_, end, whole) in enumerate(frames(memoryview(data))):
        if not whole:
            what = f"request {number}" if number else "the header"
            return f"{what}, bytes {at} to {end}, does not match its checksum"
        at = end
    if at < len(data):
        return f"torn: {len(data) - at} bytes behind byte {at} are no whole message"
    try:
        read_header(path)
    except FileNotFoundError:
        return None
    except ValueError as e:
        return str(e)
    return None


def _open_problem(path: Path, data: bytes) -> str | None:
    """What a dead receiver left torn; a living one pads its file with zeros and may write it right now."""
    if _is_written(path):
        return None
    at = max((end for _, end in messages(memoryview(data))), default=0)
    if torn := len(data[at:].rstrip(b"\0")):
        return f"torn: {torn} bytes behind byte {at}, never acknowledged; cut off at the next start"
    return None


def _is_written(path: Path) -> bool:
    """Say whether a living receiver has the file; asked of the kernel, since to try its lock is to take it."""
    try:
        found = path.stat()
        locks = _LOCKS.read_text()
    except OSError:
        return False
    place = f" {os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino} "
    return any("FLOCK" in line and place in line for line in locks.splitlines())
