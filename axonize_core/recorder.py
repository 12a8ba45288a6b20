"""The hot path: ``emit()``, which runs on the inference thread.

No locks, no I/O, no logging, no exceptions out; ``ship_here()``, which a busy engine calls now and then, writes to a
socket that never blocks. A record is one struct in a bounded deque; ``append`` and
``popleft`` of a deque are atomic, so engine threads and the shipper need no lock between them.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import uuid
from collections import Counter, deque
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from axonize_core import cpus  # noqa: F401 - it looks as early as it can
from axonize_core.frames import Kind, Record
from axonize_core.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Recorder", "Source", "get_recorder"]

_MANY = int(Kind.MANY)
MANY_EVENTS = 256
"""The most events in one record, so that the shipper can take it in one slice."""
_NEVER_NS = 2**63

Source = tuple[str, str, str, str, "tuple[str, int, str | None]", "tuple[tuple[str, Any], ...] | None"]
"""``(engine, service_name, model, provider, (device type, index, uuid), attributes)``."""


class _Drainer(Protocol):
    def start(self) -> None: ...
    def flush(self, timeout_s: float) -> bool: ...
    def stop(self, timeout_s: float) -> bool: ...
    def forget(self) -> None: ...
    def ship_here(self) -> int: ...


class _Nowhere:
    """Stands where no shipper could be started: every record is dropped and counted."""

    def start(self) -> None:
        pass

    def flush(self, timeout_s: float) -> bool:  # noqa: ARG002
        return False

    def stop(self, timeout_s: float) -> bool:  # noqa: ARG002
        return False

    def forget(self) -> None:
        pass

    def ship_here(self) -> int:
        return _NEVER_NS


class Recorder:
    """The records of one process.

    ``emit(kind, handle, payload=0)`` may be called from any thread: about 0.1 us, never blocks, never raises. It
    stamps the record with ``clock()`` (perf_counter_ns). Full: the newest record is dropped and counted.
    The first ``emit`` of a process, and the first after a fork, starts the shipper.

    Where the call of ``emit`` itself is too dear, ``append`` of a ``Record`` is as good while ``len(queue) < limit``.
    """

    clock = staticmethod(time.perf_counter_ns)

    def __init__(self, capacity: int, make_drainer: Callable[[Recorder], _Drainer]) -> None:
        self.capacity = capacity
        self.next_handle: Callable[[], int] = itertools.count(1).__next__
        self.sources: list[tuple[int, Source]] = []
        self.errors: Counter[str] = Counter()
        self._make_drainer = make_drainer
        self.queue: deque[Record] = deque()
        self.append, self.take, self.limit = self.queue.append, self.queue.popleft, 0
        self.emit, self._set_limit = self._build()
        self._reset()

    def _build(self) -> tuple[Callable[..., None], Callable[[int], None]]:
        """Return emit and the setter of its limit; a limit of 0 sends every record to the slow path."""
        queue, append, clock, limit = self.queue, self.append, self.clock, 0
        overflow, record = self._overflow, Record

        def emit(kind: int, handle: int, payload: Any = 0) -> None:
            if len(queue) < limit:
                append(record(kind, handle, payload, clock()))
            else:
                overflow(kind, handle, payload)

        def set_limit(value: int) -> None:
            nonlocal limit
            self.limit = limit = value

        return emit, set_limit

    def emit_many(self, kind: int, handles: Sequence[int], payloads: Sequence[Any] | None = None) -> None:
        """Record events of one instant, the members of one step say: one clock reading and one record for all.

        ``payloads`` has one payload for each handle; None gives each of them 0. As ``emit``: any thread, never blocks,
        never raises. Many at once, or a queue with many records in it, are recorded one by one, so that the memory of
        a full queue stays that of single records.
        """
        events = len(handles)
        if 0 < events <= MANY_EVENTS and len(self.queue) * MANY_EVENTS < self.capacity:
            self.emit(_MANY, events, (kind, tuple(handles), None if payloads is None else tuple(payloads)))
        else:
            for handle, payload in zip(handles, itertools.repeat(0) if payloads is None else payloads, strict=False):
                self.emit(kind, handle, payload)

    def _reset(self) -> None:
        """Begin anew: at creation, and in a forked child, whose copy of the parent's records is not its own."""
        self._set_limit(0)
        self.queue.clear()
        self._drainer: _Drainer | None = None
        self._starting = threading.Lock()
        self._drop: Callable[[], int] = itertools.count().__next__
        self._drop_reads = 0
        self.instance_id = str(uuid.uuid4())
        self.pid = os.getpid()

    def _after_fork(self) -> None:
        """In a forked child: begin anew, and let go of the parent's connection.

        A copy of it kept open here would hide from the agent that the parent died.
        """
        parents = self._drainer
        self._reset()
        try:
            if parents is not None:
                parents.forget()
        except Exception:  # noqa: BLE001 - nothing of ours may reach the engine
            self.count_error("recorder.fork")

    def _overflow(self, kind: int, handle: int, payload: Any) -> None:
        """Start the shipper if this process has none yet, else count what is dropped."""
        try:
            if self._drainer is None:
                self._start()
                self.emit(kind, handle, payload)
            else:
                self.count_dropped(handle if kind == _MANY else 1)
        except Exception:  # noqa: BLE001 - nothing of ours may reach the engine
            self.count_error("recorder.start")
            self._drainer = _Nowhere()
            self.count_dropped(handle if kind == _MANY else 1)

    def _start(self) -> None:
        with self._starting:
            if self._drainer is None:
                drainer = self._make_drainer(self)
                drainer.start()
                self._set_limit(self.capacity)
                self._drainer = drainer

    def start(self) -> None:
        """Start the shipper if there is none yet, so that sources are told before anything is emitted. Never raises."""
        try:
            if self._drainer is None:
                self._start()
        except Exception:  # noqa: BLE001 - nothing of ours may reach the engine
            self.count_error("recorder.start")
            self._drainer = _Nowhere()

    def source(
        self,
        engine: str,
        service_name: str,
        model: str,
        provider: str,
        device: tuple[str, int, str | None],
        attributes: tuple[tuple[str, Any], ...] | None = None,
    ) -> int:
        """Return the id of this source, the same for the same values.

        Sources do not pass through the queue: they are never dropped, and every new agent is told them.
        """
        value: Source = (engine, service_name, model, provider, device, attributes)
        for known_id, known in self.sources:
            if known == value:
                return known_id
        source_id = self.next_handle()
        self.sources.append((source_id, value))
        return source_id

    def count_error(self, where: str) -> None:
        """Count a failure of our own code; ``axonize doctor`` shows it. Never raises."""
        self.errors[where] += 1

    def count_dropped(self, records: int) -> None:
        """Count records that were taken from the queue but lost on the way to the agent."""
        for _ in range(records):
            self._drop()

    def dropped_total(self) -> int:
        """Return the records dropped since the process started. Only for who ships."""
        # A count can only be read by drawing from it, so what reading drew is taken off again.
        self._drop_reads += 1
        return self._drop() - (self._drop_reads - 1)

    def queued(self) -> int:
        """Return the number of records that wait for the shipper."""
        return len(self.queue)

    def ship_here(self) -> int:
        """Hand over some of what waits, on the calling thread: an engine's, between two of its steps.

        Up to 0.2 ms of work every 76 ms, where to wake the shipper's thread would cost the engine several times that.
        It does nothing where no agent is connected, or the thread is at it. Never blocks, never raises.

        Returns:
            The reading of ``clock()`` before which it need not be called again.
        """
        drainer = self._drainer
        return 0 if drainer is None else drainer.ship_here()

    def flush(self, timeout_s: float = 2.0) -> bool:
        """Wait until all records so far were handed to the agent; False when that took too long."""
        return True if self._drainer is None else self._drainer.flush(timeout_s)

    def redirect(
        self, make_drainer: Callable[[Recorder], _Drainer], timeout_s: float = 2.0
    ) -> Callable[[Recorder], _Drainer]:
        """Send what comes next elsewhere, after what is there was flushed; return where it went before."""
        self.close(timeout_s)
        before, self._make_drainer = self._make_drainer, make_drainer
        return before

    def close(self, timeout_s: float = 2.0) -> bool:
        """Flush, say goodbye to the agent and stop; the next emit starts anew."""
        drainer, self._drainer = self._drainer, None
        self._set_limit(0)
        return True if drainer is None else drainer.stop(timeout_s)


def _make_shipper(recorder: Recorder) -> _Drainer:
    from axonize_core.shipper import make_shipper  # noqa: PLC0415 - only a process that emits needs it

    return make_shipper(recorder, get_settings())


@lru_cache(maxsize=1)
def get_recorder() -> Recorder:
    """Return the recorder of this process; made on the first call, begun anew after a fork."""
    recorder = Recorder(get_settings().queue_capacity, _make_shipper)
    os.register_at_fork(after_in_child=recorder._after_fork)  # noqa: SLF001 - same module
    return recorder
