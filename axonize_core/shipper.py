"""The thin thread of the inference process: drains records in time slices and hands frames to a transport.

A background thread that runs pure Python delays the engine by the length of its slice, because the engine drops
the GIL at every op and loses it to the thread. Slices of 200 us, 2 ms apart, cost a 1 ms step at most 0.3 ms
(measured); ``sleep(0)`` and the switch interval do not help.
"""

from __future__ import annotations

import atexit
import threading
import time
from typing import TYPE_CHECKING, Protocol

from axonize_core.frames import Bye, Kind, Record, Records, count_events, encode_frame
from axonize_core.transport import make_transport

if TYPE_CHECKING:
    from collections.abc import Callable

    from axonize_core.recorder import Recorder, Source
    from axonize_core.settings import Settings

__all__ = ["Shipper", "Transport", "make_shipper"]

PERIOD_S = 0.1
_RUN, _RUN_END, _RUN_TIMES = int(Kind.RUN), int(Kind.RUN_END), int(Kind.RUN_TIMES)
_MANY, _STEP, _EXECUTE = int(Kind.MANY), int(Kind.STEP), int(Kind.EXECUTE)
_SPECIAL = {_RUN, _RUN_END, _MANY, _STEP, _EXECUTE}
SLICE_NS = 200_000
PAUSE_S = 0.002
CHUNK = 256
EXIT_S = 5.0
"""How long an exiting interpreter waits for what it recorded; an agent may have to start first."""


class Transport(Protocol):
    """Carries encoded frames to an agent; all calls come from the shipper's thread and none blocks long."""

    generation: int
    """Grows with every new agent: sources and frame numbers begin anew."""

    def ready(self) -> bool:
        """Say whether a frame would be taken now; (re)connects when there is no agent."""

    def write(self, frame: bytes, records: int) -> None:
        """Take one frame of so many records, or count them as dropped."""

    def drained(self, timeout_s: float) -> bool:
        """Wait until what was taken has left this process."""

    def close(self) -> None:
        """Let go of the agent."""

    def forget(self) -> None:
        """In a forked child: close this copy of the parent's connection, and count nothing."""


class Shipper:
    """Drains one recorder. ``start``, ``flush`` and ``stop`` may be called from any thread."""

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
        self._wake = threading.Event()
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

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything recorded so far has left this process; False when that took too long."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and self._thread.is_alive():
            self._idle.clear()
            self._wake.set()
            if self._idle.wait(0.05) and not self._recorder.queued():
                return True
        return False

    def stop(self, timeout_s: float) -> bool:
        """Flush, say goodbye and end the thread, within ``timeout_s``."""
        atexit.unregister(self.stop)
        flushed = self.flush(timeout_s)
        self._stopping = True
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        return flushed

    def forget(self) -> None:
        """In a forked child, where this thread does not run: let go of what is the parent's."""
        atexit.unregister(self.stop)
        self._transport.forget()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(PERIOD_S)
            self._wake.clear()
            self._guarded(self._drain)
        self._guarded(self._goodbye)

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:  # noqa: BLE001 - counted; the engine's process must not hear of it
            self._recorder.count_error(f"shipper.{getattr(action, '__name__', 'action').strip('_')}")

    def _drain(self) -> None:
        """Ship all that waits, in slices; stops early when the agent cannot take more."""
        while self._transport.ready():
            if not self._slice(self._recorder.clock() + SLICE_NS):
                self._ship(self._live_times())
                if self._transport.drained(0.0):
                    self._idle.set()
                return
            time.sleep(self._pause_s)

    def _slice(self, deadline_ns: int) -> bool:
        """Ship chunks until the deadline; say whether records are left."""
        while self._recorder.clock() < deadline_ns:
            records = self._take(CHUNK)
            if not records:
                return False
            self._ship(records)
            if not self._transport.ready():
                return False
        return True

    def _take(self, most: int) -> list[Record]:
        """Return the next records, about ``most`` events; those of runs are completed on the way."""
        take, records = self._recorder.take, []
        for _ in range(min(most, self._recorder.queued())):
            record = take()
            if record.kind in _SPECIAL:
                records += self._with_times(record)
                most -= _weight(record)
                if most <= 0:
                    break
            else:
                records.append(record)
        return records

    def _with_times(self, record: Record) -> list[Record]:
        if record.kind == _RUN:
            return [self._watch(record)]
        return [*self._run_times(record.handle), record] if record.kind == _RUN_END else [record]

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

    def _ship(self, records: list[Record]) -> None:
        recorder, transport = self._recorder, self._transport
        if transport.generation != self._generation:
            self._generation, self._seq, self._sources_sent = transport.generation, 0, 0
        sources = recorder.sources[self._sources_sent :]
        dropped = recorder.dropped_total()
        if not records and not sources and dropped == self._dropped_sent:
            return
        try:
            frame = self._frame(records, dropped, sources)
        except Exception:  # noqa: BLE001 - a record that no frame can carry costs itself only
            recorder.count_error("shipper.encode")
            kept = [record for record in records if _can_be_encoded(record)]
            recorder.count_dropped(count_events(records) - count_events(kept))
            records, dropped = kept, recorder.dropped_total()
            frame = self._frame(records, dropped, sources)
        transport.write(frame, count_events(records))
        self._dropped_sent = dropped
        self._seq += 1
        self._sources_sent += len(sources)

    def _frame(self, records: list[Record], dropped: int, sources: list[tuple[int, Source]]) -> bytes:
        recorder = self._recorder
        return encode_frame(
            Records(self._seq, self._wall(), recorder.clock(), dropped, records, list(sources), dict(recorder.errors))
        )

    def _goodbye(self) -> None:
        if self._transport.generation == self._generation and self._transport.ready():
            self._transport.write(encode_frame(Bye("exit")), 0)
            self._transport.drained(1.0)
        self._transport.close()


def _weight(record: Record) -> int:
    """Return how many plain records this one takes as much room as."""
    if record.kind == _MANY:
        return record.handle
    if record.kind == _EXECUTE:
        _, seqs, _, contexts, parameters, _ = record.payload
        return 1 + len(seqs) + sum(map(len, (*(parameters or ()), *filter(None, contexts or ())))) // 512
    members = record.payload[4] if record.kind == _STEP else None
    return 1 if members is None else 1 + len(members[0]) // 4


def _can_be_encoded(record: Record) -> bool:
    try:
        encode_frame(Records(0, 0, 0, 0, [record]))
    except Exception:  # noqa: BLE001 - whatever is wrong with it, it cannot be sent
        return False
    return True


def make_shipper(recorder: Recorder, settings: Settings) -> Shipper:
    """Return a shipper with the transport that the settings ask for."""
    return Shipper(recorder, make_transport(recorder, settings))
