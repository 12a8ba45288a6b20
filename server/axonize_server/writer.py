"""Sealed segments become rows, oldest first; the query API answers beside it in the same process.

A segment is deleted only when its insert succeeded; repeated after a crash, its id makes the second insert a
no-op. The loop runs in the main thread, the API's server in another.
"""

from __future__ import annotations

import contextlib
import fcntl
import operator
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from tenacity import (
    RetryError,
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_random_exponential,
)

from axonize_core.errors import AxonizeError, StoreError
from axonize_server.api import ApiServer, make_app
from axonize_server.draining import DrainOverError, drained, listen_to_signals
from axonize_server.health import Counters, Health
from axonize_server.migrate import migrate_registry, migrate_store
from axonize_server.parting import finish_parting, is_rest, mark_stored_in_part, write_parts
from axonize_server.refused import Refusal, set_aside
from axonize_server.registry.address import open_registry
from axonize_server.registry.sync import RegistrySync
from axonize_server.sifting import sift
from axonize_server.spool import SIGNALS, Segment, UnknownVersionError, read_header, remove, sealed_segments
from axonize_server.store.clickhouse import ClickHouseStore, SegmentRefusedError, StoreUnreachableError
from axonize_server.store.dsn import parse_dsn
from axonize_server.store.repair import forget_lost_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tenacity import RetryCallState

    from axonize_server.migrate import Applied
    from axonize_server.registry.base import Registry
    from axonize_server.settings import Settings

__all__ = ["Writer", "WriterLockedError", "run"]

_log = structlog.get_logger("axonize.writer")
_POLL_S = 0.05
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 10.0
_ATTEMPTS_A_ROUND = 6
_ROUNDS = 3


class WriterLockedError(AxonizeError):
    """Another writer works on this data directory."""


class Writer:
    """Moves segments from the spool into the store; one thread."""

    def __init__(
        self,
        store: ClickHouseStore,
        settings: Settings,
        counters: Counters,
        stop: threading.Event,
        clock: Callable[[], int] | None = None,
    ) -> None:
        """Work on a spool until `stop`; `clock` tells ns since the epoch and may not step."""
        self._store = store
        self._clock = clock or _steady_clock()
        self._settings = settings
        self._spool_dir = settings.spool_dir
        self._counters = counters
        self._stop = stop
        self._deadline: float | None = None
        # Segments that failed round after round: how often, and how many others were stored before the first time.
        self._failed: dict[str, tuple[int, int]] = {}

    def run(self, drain_s: float) -> None:
        """Store what is sealed until `stop` is set, then what is left, for at most `drain_s` seconds."""
        finish_parting(self._spool_dir)
        while not self._stop.is_set():
            if not self.store_sealed():
                self._wait_for_the_store()
            self._stop.wait(_POLL_S)
        self._deadline = time.monotonic() + drain_s
        self.store_sealed()
        if left := len(self._segments()):
            _log.warning("spool_not_drained", segments=left, seconds=drain_s)

    def store_sealed(self) -> bool:
        """Store the segments sealed now, oldest first; False when the store is away and they have to wait."""
        for segment in self._segments():
            if self._halted():
                return True
            if not (self._store_one(segment) or self._store.ping()):
                self._failed.pop(segment.id, None)  # a round without a store says nothing of the segment
                if not self._halted():
                    self._look_at_ages()
                return False
        return True

    def _wait_for_the_store(self) -> None:
        """Ask whether the store is back, ever more seldom, and send it nothing larger meanwhile."""
        waiting = Retrying(
            retry=retry_if_result(operator.not_),
            wait=_waits(),
            stop=stop_when_event_set(self._stop),
            sleep=self._sleep,
            before_sleep=lambda _: self._look_at_ages(),
            retry_error_callback=lambda _: None,
        )
        waiting(self._store.ping)

    def _look_at_ages(self) -> None:
        """With the store away, report what waits too long, and drop it if the settings say so."""
        now_ns, limit_s = self._clock(), self._settings.spool_max_age_s
        if not (old := [segment for segment in self._segments() if segment.age_s(now_ns) > limit_s]):
            return
        size = sum(segment.size_bytes for segment in old)
        drop = self._settings.spool_drop_old
        _log.error("spool_too_old", segments=len(old), size_bytes=size, limit_s=limit_s, dropped=drop)
        if drop:
            for segment in old:
                remove(segment)
            self._counters.dropped_segments += len(old)
            self._counters.dropped_bytes += size

    def _segments(self) -> list[Segment]:
        return [segment for segment in sealed_segments(self._spool_dir) if segment.signal in SIGNALS]

    def _halted(self) -> bool:
        """Say whether the time to work is over: while draining the deadline decides, before that the signal."""
        return self._stop.is_set() if self._deadline is None else time.monotonic() >= self._deadline

    def _store_one(self, segment: Segment) -> bool:
        """Store one segment with several attempts, or set it aside; False when it has to wait."""
        try:
            settings = read_header(segment.path)["settings"]
            for attempt in self._attempts():
                with attempt:
                    began = time.monotonic()
                    repeated = self._store.insert(segment.path, segment.signal, segment.id, settings)
        except RetryError as e:
            return self._after_failed_round(segment, e.last_attempt.exception())
        except (SegmentRefusedError, ValueError, KeyError, OSError) as e:
            return self._after_refusal(segment, e)
        self._counters.insert_seconds.observe(time.monotonic() - began)
        self._counters.stored_segments += 1
        self._counters.stored_bytes += segment.size_bytes
        self._counters.last_error = None
        self._failed.pop(segment.id, None)
        if repeated:
            self._counters.repeated_inserts += 1
            mark_stored_in_part(self._spool_dir, segment)
        remove(segment)
        return True

    def _after_refusal(self, segment: Segment, error: Exception) -> bool:
        """Part, set aside or leave a segment that no further attempt would store; False when it has to wait."""
        if isinstance(error, SegmentRefusedError):
            return self._part(segment, str(error))
        if isinstance(error, OSError):
            return self._unreadable(segment, error)
        cause = "version" if isinstance(error, UnknownVersionError) else "header"
        return self._set_aside(segment, Refusal(str(error), cause))

    def _part(self, segment: Segment, reason: str) -> bool:
        """Cut out what the store refuses and store the rest; where that cannot be, set all of it aside."""
        whole = Refusal(reason, "data", stored_in_part=True)
        try:
            return self._parted(segment, whole)
        except StoreUnreachableError as e:
            return self._after_failed_round(segment, e)
        except StoreError as e:
            untried = whole._replace(reason=f"{reason}; and it could not be parted: {e}")
            return self._store.ping() and self._set_aside(segment, untried)
        except OSError as e:
            return self._unreadable(segment, e)

    def _parted(self, segment: Segment, whole: Refusal) -> bool:
        if is_rest(segment.path):
            return self._set_aside(segment, whole)
        self._counters.partings += 1
        found = sift(self._store, self._settings, segment, self._halted)
        if not (found.rest and found.bad):
            return self._set_aside(segment, whole._replace(stored_in_part=found.stored_in_part))
        write_parts(self._spool_dir, segment, found.rest, found.bad)
        self._counters.refused_segments += len(found.bad)
        self._counters.refused_by_cause.update(refusal.cause for _, refusal in found.bad)
        _log.error("segment_parted", segment=segment.id, refused=len(found.bad), error=found.bad[0][1].reason)
        return self._store_one(segment)

    def _attempts(self) -> Retrying:
        return Retrying(
            retry=retry_if_exception_type(StoreUnreachableError),
            wait=_waits(),
            stop=lambda state: self._halted() or stop_after_attempt(_ATTEMPTS_A_ROUND)(state),
            sleep=self._sleep,
            before_sleep=self._count_retry,
        )

    def _sleep(self, seconds: float) -> None:
        """Wait, but not past the signal to stop; while draining in short steps."""
        if self._stop.is_set():
            time.sleep(min(seconds, _FIRST_WAIT_S))
        else:
            self._stop.wait(seconds)

    def _count_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if self._counters.last_error is None:
            _log.warning("insert_failed", error=str(error), attempt=state.attempt_number)
        self._counters.insert_retries += 1
        self._counters.last_error = str(error)

    def _after_failed_round(self, segment: Segment, error: BaseException | None) -> bool:
        """Set a segment aside that keeps failing while others succeed; else it waits for the store."""
        stored = self._counters.stored_segments
        rounds, stored_before = self._failed.get(segment.id, (0, stored))
        self._failed[segment.id] = (rounds + 1, stored_before)
        if rounds + 1 < _ROUNDS or stored == stored_before:
            return False
        return self._set_aside(segment, Refusal(str(error), "failing", stored_in_part=True))

    def _unreadable(self, segment: Segment, error: OSError) -> bool:
        """Leave a segment the disk does not give, and go on with the others; one that is gone is no error."""
        if not isinstance(error, FileNotFoundError):
            self._counters.last_error = f"segment {segment.id!r} cannot be read: {error}"
            _log.error("segment_unreadable", segment=segment.id, error=str(error))
        return True

    def _set_aside(self, segment: Segment, refusal: Refusal) -> bool:
        """Move a segment to `spool/refused/<signal>/` with its reason; False when the disk refuses that too."""
        try:
            set_aside(self._spool_dir, segment, refusal)
        except FileNotFoundError:  # somebody took it away meanwhile
            return True
        except OSError as e:
            self._counters.last_error = f"segment {segment.id!r} cannot be set aside: {e}"
            _log.error("segment_not_set_aside", segment=segment.id, error=str(e))
            return False
        self._failed.pop(segment.id, None)
        self._counters.refused_segments += 1
        self._counters.refused_by_cause[refusal.cause] += 1
        _log.error("segment_refused", segment=segment.id, cause=refusal.cause, error=refusal.reason)
        return True


def _waits() -> wait_random_exponential:
    return wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)


def _steady_clock() -> Callable[[], int]:
    """Ns since the epoch as of now, and from here by a clock that is never set: a step drops nothing as too old."""
    offset_ns = time.time_ns() - time.monotonic_ns()
    return lambda: time.monotonic_ns() + offset_ns


def run(settings: Settings, ready: Callable[[int], None] | None = None) -> None:
    """Migrate, then write and answer until SIGTERM or SIGINT; call it in a process's main thread.

    Told to stop, it is over after `drain_s` seconds and a moment, also while a store that does not answer is waited
    for: an insert that is left alone so is repeated by the next writer, and counts once.

    Args:
        settings: the collector's.
        ready: called with the API's port once it listens.

    Raises:
        WriterLockedError: Another writer has the data directory.
        ConfigurationError: An address cannot be used, or ClickHouse is too old.
        StoreError: The store cannot be opened or migrated, or the registry's file cannot be opened.
        OSError: The API's port is taken.
    """
    stop = threading.Event()
    counters = Counters()
    listen_to_signals(stop, settings.drain_s)
    try:
        _run(settings, stop, counters, ready)
    except DrainOverError:
        _log.warning("drain_over", seconds=settings.drain_s, reason="the store did not answer; its segment comes again")
    _log.info("writer_stopped", **counters.numbers())


def _run(
    settings: Settings, stop: threading.Event, counters: Counters, ready: Callable[[int], None] | None = None
) -> None:
    with _locked(settings.data_dir), _opened(_repaired(settings.store), settings.store_cluster, stop) as store:
        if store is None:
            _log.info("store_never_reached", reason="what was acknowledged waits in the spool")
            return
        registry = open_registry(settings.registry)
        applied = [*migrate_store(store, settings), *_migrated(registry)]
        sync = RegistrySync(store, registry)
        app = make_app(store, registry, Health(settings, store, registry, counters, sync), settings.tenant)
        server = ApiServer(app, settings.host, settings.api_port)
        server.start()
        sync.start()
        _log.info("writer_ready", store=store.dsn.text, api_port=server.port, migrations=len(applied))
        if ready:
            ready(server.port)
        try:
            Writer(store, settings, counters, stop).run(settings.drain_s)
        finally:
            drained()
            server.stop()
            sync.stop()
            registry.close()


def _repaired(dsn: str) -> str:
    """Bring an embedded store's directory in order, which this process alone may open; any address is given back."""
    address = parse_dsn(dsn)
    if address.scheme == "chdb" and (lost := forget_lost_blocks(Path(address.path))):
        _log.warning("blocks_forgotten", parts=lost, reason="the engine was killed before it had them; they come again")
    return dsn


def _migrated(registry: Registry) -> list[Applied]:
    """Bring the registry's schema up to date; one that is away is migrated when it is back."""
    try:
        return migrate_registry(registry)
    except StoreError as e:
        _log.warning("registry_unreachable", registry=registry.text, error=str(e))
        return []


@contextlib.contextmanager
def _opened(dsn: str, cluster: str, stop: threading.Event) -> Iterator[ClickHouseStore | None]:
    """Connect, and close in the end; None when told to stop before the store was reached."""
    try:
        store = _open_store(dsn, cluster, stop)
    except StoreUnreachableError:
        if not stop.is_set():
            raise
        yield None
        return
    with contextlib.closing(store):
        yield store


def _open_store(dsn: str, cluster: str, stop: threading.Event) -> ClickHouseStore:
    """Connect; a store that is away is waited for, since receivers go on without it."""
    attempts = Retrying(
        retry=retry_if_exception_type(StoreUnreachableError),
        wait=_waits(),
        stop=stop_when_event_set(stop),
        sleep=sleep_using_event(stop),
        before_sleep=lambda state: _log.warning(
            "store_unreachable", error=str(state.outcome and state.outcome.exception())
        ),
        reraise=True,
    )
    return attempts(ClickHouseStore, dsn, cluster)


@contextlib.contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Hold the data directory's writer lock; the kernel drops it with the process, however that ends."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(data_dir / "writer.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise WriterLockedError(
                f"another writer works in {str(data_dir)!r}: stop it, or give another --data-dir"
            ) from e
        yield
    finally:
        os.close(fd)
