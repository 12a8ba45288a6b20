"""What hands the records of the inference process to a transport, in slices: an engine's thread, or one of our own.

A thread that wakes up beside an engine costs it half a millisecond, however little it does: the GIL there and back,
and caches that are cold. The same on the engine's own thread, between two steps, costs a quarter (docs/adr/0010). So
an engine whose thread is busy step after step calls ``ship_here``, and ours sleeps on while it does. Ours ships for all
others, finds agents, and is there when an engine stops; it works for 50 us at a time, with pauses of 0.5 ms, for which
``sleep(0)`` and the switch interval are no substitutes.
"""

from __future__ import annotations

import atexit
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Raw

from axonize_core.alarm import Alarm
from axonize_core.frames import Bye, Kind, Record, Records, encode_frame, encode_record
from axonize_core.transport import make_transport

if TYPE_CHECKING:
    from collections.abc import Callable

    from axonize_core.recorder import Recorder
    from axonize_core.settings import Settings

__all__ = ["Shipper", "Transport", "make_shipper"]

PERIOD_S = 0.08
"""What an engine recorded 0.1 s before it is killed is with the agent; the rest is for a thread that wakes up late."""
HERE_NS = 76_000_000
"""How long an engine's thread may wait before it ships again; ours, which wakes after ``PERIOD_S``, sleeps on then."""
_RUN, _RUN_END, _RUN_TIMES, _MANY = int(Kind.RUN), int(Kind.RUN_END), int(Kind.RUN_TIMES), int(Kind.MANY)
_OF_RUNS = {_RUN, _RUN_END}
SLICE_NS, HERE_SLICE_NS = 50_000, 200_000
"""Ours takes the GIL from an engine that wants it; an engine's own has it, and each slice begins with cold caches."""
PAUSE_S = 0.0005
CHUNK = 128
"""Events that a slice ships at most; fewer that came meanwhile are left for the next period."""
_FRAME_BYTES = 65_536
"""After so many a frame has no room, however few records they are."""
_LOOK_RECORDS = 8
"""How often a slice looks at the clock."""
EXIT_S = 5.0
"""How long an exiting interpreter waits for what it recorded; an agent may have to start first."""


class Transport(Protocol):
    """Carries encoded frames to an agent; one call at a time, and none blocks long.

    ``takes_now``, ``write`` and ``drained(0)`` may come from an engine's thread and do not block at all.
    """

    generation: int
    """Grows with every new agent: sources and frame numbers begin anew."""

    def ready(self) -> bool:
        """Say whether a frame would be taken now; (re)connects when there is no agent."""

    def takes_now(self) -> bool:
        """Say whether a frame would be taken now, as things are."""

    def write(self, frame: bytes, records: int) -> None:
        """Take one frame of so many records, or count them as dropped."""

    def drained(self, timeout_s: float) -> bool:
        """Wait until what was taken has left this process."""

    def close(self) -> None:
        """Let go of the agent."""

    def forget(self) -> None:
        """In a forked child: close this copy of the parent's connection, and count nothing."""


class Shipper:
    """Drains one recorder. ``start``, ``flush``, ``stop`` and ``ship_here`` may be called from any thread."""

    def __init__(
        self,
        recorder: Recorder,
        transport: Transport,
        wall: Callable[[], int] = time.time_ns,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._recorder = recorder
        self._transport = transport
        self._wall = wall
        self._pause_s = pause_s
        self._alarm = Alarm()
        self._turn = threading.Lock()
        """Who holds it ships; an engine's thread never waits for it."""
        self._idle = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="axonize-shipper", daemon=True)
        self._generation = -1
        self._seq = 0
        self._sources_sent = 0
        self._dropped_sent = 0
        self._live: dict[int, tuple[list[int], int]] = {}

    def start(self) -> None:
        """Start the thread; it is stopped, flushed, when the interpreter exits."""
        self._thread.start()
        atexit.register(self.stop, EXIT_S)

    def wake(self) -> None:
        """Ship what is there now, and not in ``PERIOD_S``."""
        self._alarm.ring()

    def ship_here(self) -> int:
        """Ship a slice on the calling thread, an engine's between two of its steps; never blocks, never raises.

        Returns:
            The reading of the recorder's clock before which it need not be called again.
        """
        if self._turn.acquire(blocking=False):
            try:
                if self._transport.takes_now():
                    waiting = self._recorder.queued()
                    if self._slice(waiting, HERE_SLICE_NS) < waiting:
                        return 0
                    if self._live or not waiting:
                        self._ship_live()
                    self._alarm.put_off(PERIOD_S)
            except Exception:  # noqa: BLE001 - counted; the engine must not hear of it
                self._recorder.count_error("shipper.ship_here")
            finally:
                self._turn.release()
        return self._recorder.clock() + HERE_NS

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything recorded so far has left this process; False when that took too long."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._thread.is_alive():
            self._idle.clear()
            self.wake()
            if self._idle.wait(0.05):
                return True
        return False

    def stop(self, timeout_s: float) -> bool:
        """Flush, say goodbye and end the thread, within ``timeout_s``."""
        atexit.unregister(self.stop)
        flushed = self.flush(timeout_s)
        self._stopping = True
        self.wake()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        return flushed

    def forget(self) -> None:
        """In a forked child, where this thread does not run: let go of what is the parent's."""
        atexit.unregister(self.stop)
        self._alarm.close()
        self._transport.forget()

    def _run(self) -> None:
        while not self._stopping:
            self._alarm.sleep(PERIOD_S)
            with self._turn:
                self._guarded(self._drain)
        with self._turn:
            self._guarded(self._goodbye)
        self._alarm.close()

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:  # noqa: BLE001 - counted; the engine's process must not hear of it
            self._recorder.count_error(f"shipper.{getattr(action, '__name__', 'action').strip('_')}")

    def _drain(self) -> None:
        """Ship what waits, in slices; stops early when the agent cannot take more.

        What comes meanwhile is for the next time, up to a chunk: each time costs the engine as much as 100 records do.
        """
        waiting = self._recorder.queued()
        while self._transport.ready():
            waiting -= self._slice(waiting, SLICE_NS)
            if not waiting:
                waiting = self._recorder.queued()
                if waiting < CHUNK:
                    self._ship_live()
                    # Only where nothing came meanwhile: who flushes may have recorded it just before.
                    if not self._recorder.queued() and self._transport.drained(0.0):
                        self._idle.set()
                    return
            time.sleep(self._pause_s)

    def _ship_live(self) -> None:
        """Ship what runs told, and what drops and sources there are, when no record waits."""
        self._ship([Raw(encode_record(record)) for record in self._live_times()], 0)

    def _slice(self, waiting: int, slice_ns: int) -> int:
        """Ship as many of those that wait as a slice allows, with what runs told since; return how many."""
        take, clock, shipped, taken, events, size = self._recorder.take, self._recorder.clock, [], 0, 0, 0
        deadline_ns = clock() + slice_ns
        try:
            while taken < waiting and events < CHUNK and size < _FRAME_BYTES:
                record = take()
                taken += 1
                events += record.handle if record.kind == _MANY else 1
                try:
                    for one in self._with_times(record) if record.kind in _OF_RUNS else (record,):
                        data = encode_record(one)
                        shipped.append(Raw(data))
                        size += len(data)
                except Exception:  # noqa: BLE001 - a record that no frame can carry costs itself only
                    self._recorder.count_error("shipper.encode")
                    lost = record.handle if record.kind == _MANY else 1
                    self._recorder.count_dropped(lost)
                    events -= lost
                if not taken % _LOOK_RECORDS and clock() >= deadline_ns:
                    break
            self._ship(shipped, events)
        except BaseException:  # a signal's, on an engine's thread, or the transport's own
            self._recorder.count_dropped(events)
            raise
        return taken

    def _with_times(self, record: Record) -> list[Record]:
        if record.kind == _RUN:
            return [self._watch(record)]
        return [*self._run_times(record.handle), record]

    def _watch(self, record: Record) -> Record:
        """Keep the live list of a RUN here; the frame carries the rest."""
        self._live[record.handle] = (record.payload[-1], 0)
        return Record(record.kind, record.handle, record.payload[:-1], record.t_ns)

    def _live_times(self) -> list[Record]:
        return [record for handle in list(self._live) for record in self._run_times(handle)]

    def _run_times(self, handle: int) -> list[Record]:
        """Return what the engine appended to a run's live list since the last look; the sentinel closes it."""
        if handle not in self._live:
            return []
        times, sent = self._live[handle]
        fresh = times[sent:]
        if not fresh:
            return []
        if fresh[-1] < 0:
            del self._live[handle]
        else:
            self._live[handle] = (times, sent + len(fresh))
        return [Record(_RUN_TIMES, handle, tuple(fresh), abs(fresh[-1]))]

    def _ship(self, records: list[Any], events: int) -> None:
        """Send a frame of records that are encoded already, where there is anything to tell."""
        recorder, transport = self._recorder, self._transport
        if transport.generation != self._generation:
            self._generation, self._seq, self._sources_sent = transport.generation, 0, 0
        sources = recorder.sources[self._sources_sent :]
        dropped = recorder.dropped_total()
        if not records and not sources and dropped == self._dropped_sent:
            return
        errors = dict(recorder.errors)
        frame = Records(self._seq, self._wall(), recorder.clock(), dropped, records, sources, errors)
        transport.write(encode_frame(frame), events)
        self._dropped_sent = dropped
        self._seq += 1
        self._sources_sent += len(sources)

    def _goodbye(self) -> None:
        if self._transport.generation == self._generation and self._transport.ready():
            self._transport.write(encode_frame(Bye("exit")), 0)
            self._transport.drained(1.0)
        self._transport.close()


def make_shipper(recorder: Recorder, settings: Settings) -> Shipper:
    """Return a shipper with the transport that the settings ask for."""
    return Shipper(recorder, make_transport(recorder, settings))
