"""What OTLP, the store's clock and its days of keeping demand of each record; and the sieve that holds to it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
    from opentelemetry.proto.metrics.v1.metrics_pb2 import NumberDataPoint
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

__all__ = [
    "DAY_NS",
    "MAX_AHEAD_NS",
    "MAX_DAYS",
    "MAX_RECORDS",
    "Sieve",
    "Window",
    "log_fault",
    "place_log",
    "point_fault",
    "span_fault",
]

DAY_NS: Final = 86_400 * 10**9
MAX_AHEAD_NS: Final = 3_600 * 10**9
MAX_DAYS: Final = 64
MAX_RECORDS: Final = 1 << 17
"""Records of one request: a segment stays one block of rows."""

_TIME_LIMIT = 1 << 63  # the store's nanosecond clock is signed
_TRACE_ID_BYTES, _SPAN_ID_BYTES = 16, 8
_NO_TRACE, _NO_SPAN = bytes(_TRACE_ID_BYTES), bytes(_SPAN_ID_BYTES)
_TEXTS: Final = {
    "too_old": "older than they are kept here",
    "ahead": "more than 1 h ahead of this collector's clock",
    "no_time": "without a time",
    "bad_time": "with a time stamp beyond 2**63-1 ns",
    "bad_id": "with a trace_id that is not 16 bytes or a span_id that is not 8, or all zero",
    "too_many_records": f"beyond the {MAX_RECORDS} that one request may hold",
    "too_many_days": f"beyond the {MAX_DAYS} days that one request may span",
}
"""What is said of a record that is left out, by the reason it is counted under."""


class Window(NamedTuple):
    """The times at which a record may have happened, and the time it is now; ns since the epoch."""

    oldest_ns: int
    newest_ns: int
    now_ns: int

    @classmethod
    def around(cls, now_ns: int, kept_days: int) -> Window:
        """From the days that records are kept to an hour ahead."""
        return cls(max(now_ns - kept_days * DAY_NS, 1), now_ns + MAX_AHEAD_NS, now_ns)

    def fault(self, time_ns: int) -> str | None:
        """Say why a time is outside."""
        if self.oldest_ns <= time_ns <= self.newest_ns:
            return None
        if time_ns > self.newest_ns:
            return "ahead"
        return "too_old" if time_ns else "no_time"


def span_fault(span: Span, window: Window) -> tuple[int, str | None]:
    """The rule for a span."""
    start_ns = span.start_time_unix_nano
    if (fault := window.fault(start_ns)) is not None:
        return start_ns, fault
    if span.end_time_unix_nano >= _TIME_LIMIT:
        return start_ns, "bad_time"
    ids_hold = (
        _ids_hold(span.trace_id, span.span_id)
        and len(span.parent_span_id) in (0, _SPAN_ID_BYTES)
        and all(_ids_hold(link.trace_id, link.span_id) for link in span.links)
    )
    return start_ns, None if ids_hold else "bad_id"


def point_fault(point: NumberDataPoint, window: Window) -> tuple[int, str | None]:
    """The rule for a data point of any kind."""
    time_ns = point.time_unix_nano
    fault = window.fault(time_ns)
    return time_ns, "bad_time" if fault is None and point.start_time_unix_nano >= _TIME_LIMIT else fault


def log_fault(record: LogRecord, window: Window) -> tuple[int, str | None]:
    """The rule for a log record that `place_log` has seen."""
    time_ns = record.time_unix_nano or record.observed_time_unix_nano
    fault = window.fault(time_ns)
    return time_ns, "bad_time" if fault is None and record.observed_time_unix_nano >= _TIME_LIMIT else fault


def place_log(record: LogRecord, window: Window) -> bool:
    """See a record without any time now; drop an id of a wrong length, and say whether there was one."""
    if not (record.time_unix_nano or record.observed_time_unix_nano):
        record.observed_time_unix_nano = window.now_ns
    if len(record.trace_id) in (0, _TRACE_ID_BYTES) and len(record.span_id) in (0, _SPAN_ID_BYTES):
        return False
    record.trace_id = record.span_id = b""
    return True


def _ids_hold(trace_id: bytes, span_id: bytes) -> bool:
    return (
        len(trace_id) == _TRACE_ID_BYTES
        and len(span_id) == _SPAN_ID_BYTES
        and trace_id != _NO_TRACE
        and span_id != _NO_SPAN
    )


class Sieve:
    """Takes the records of one request that hold to a rule out of its messages, and counts them."""

    def __init__(self, noun: str, rule: Callable[[Any, Window], tuple[int, str | None]], window: Window) -> None:
        self.records = 0
        self.days: set[int] = set()
        self.rejected: Counter[str] = Counter()
        self._noun, self._rule, self._window = noun, rule, window

    def sift(self, records: RepeatedCompositeFieldContainer[Any]) -> None:
        """Delete from a repeated field what is not taken."""
        kept = [record for record in records if self._takes(record)]
        if len(kept) < len(records):
            del records[:]
            records.extend(kept)

    def _takes(self, record: object) -> bool:
        time_ns, fault = self._rule(record, self._window)
        day = time_ns // DAY_NS
        if fault is None and self.records == MAX_RECORDS:
            fault = "too_many_records"
        elif fault is None and day not in self.days and len(self.days) == MAX_DAYS:
            fault = "too_many_days"
        if fault is not None:
            self.rejected[fault] += 1
            return False
        self.records += 1
        self.days.add(day)
        return True

    def message(self) -> str:
        """Say how many were left out, and why; empty when none was."""
        counted = [f"{n} {self._noun}{'s' if n > 1 else ''} {_TEXTS[reason]}" for reason, n in self.rejected.items()]
        return "not stored: " + ", ".join(counted) if counted else ""
