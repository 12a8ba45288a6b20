"""The accept path, whatever the transport: validate → append → group sync → acknowledge.

One loop thread validates and appends; one sync thread waits for the disk. All requests that arrive during
one sync are made durable by the next one and acknowledged together.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING

import structlog

from axonize_server.appender import Appender, Limits, Ticket, Usage
from axonize_server.otlp import VALIDATORS, Accepted
from axonize_server.otlp_rules import Window
from axonize_server.spool import SIGNALS, SpoolUnavailableError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from axonize_server.settings import Settings

__all__ = ["Intake"]

_log = structlog.get_logger("axonize.receiver")

_LOG_EVERY_S = 10.0
_Waiting = tuple[Ticket, "Callable[[Accepted | None], None]", str, Accepted]


class Intake:
    """Accepts bodies for one receiver process; every method but the sync thread's runs on the loop thread."""

    def __init__(self, settings: Settings, loop: asyncio.AbstractEventLoop) -> None:
        self.counters: Counter[str] = Counter()
        self._loop, self._tenant = loop, settings.tenant
        self._kept_days = {
            "traces": settings.ttl_spans_days,
            "metrics": max(settings.ttl_metrics_days, settings.ttl_gpu_metrics_days),
            "logs": settings.ttl_logs_days,
        }
        usage = Usage(settings.spool_dir, settings.spool_max_bytes)
        limits = Limits(settings.segment_max_records, settings.segment_max_bytes, age_s=settings.segment_max_age_s)
        self._appenders = {signal: Appender(settings.spool_dir, signal, usage, limits) for signal in SIGNALS}
        self._waiting: list[_Waiting] = []
        self._logged_at = float("-inf")
        self._sealing = self._syncing = self._kicked = False
        self._batches: queue.SimpleQueue[list[_Waiting] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._sync_forever, name="axonize-sync")
        self._thread.start()

    def accept(self, signal: str, body: bytes | memoryview, done: Callable[[Accepted | None], None]) -> None:
        """Take one inflated OTLP request; `done` is called once, with what was taken, or None if that is not durable.

        Raises:
            InvalidRequestError: It must not be sent again.
            SpoolFullError: The spool's bound is reached.
            SpoolUnavailableError: The file system refused.
        """
        now_ns = time.time_ns()
        accepted = VALIDATORS[signal](body, Window.around(now_ns, self._kept_days[signal]))
        self.counters[f"received_bytes.{signal}"] += len(body)
        if not accepted.records:
            self._acknowledge(signal, accepted)
            done(accepted)
            return
        try:
            ticket = self._appenders[signal].append(
                accepted.body,
                records=accepted.records,
                tenant=self._tenant,
                received_ns=now_ns,
                days=accepted.days,
            )
        except OSError as error:  # while its size is looked at: no file numbers are left, or an I/O error
            raise SpoolUnavailableError(f"cannot look at the spool: {error}") from error
        self._waiting.append((ticket, done, signal, accepted))
        self._kick_soon()

    def refused(self, reason: str) -> None:
        """Count a request that was not taken."""
        self.counters[f"refused_requests.{reason}"] += 1

    def _acknowledge(self, signal: str, accepted: Accepted) -> None:
        self.counters[f"acked_requests.{signal}"] += 1
        self.counters[f"acked_records.{signal}"] += accepted.records
        for reason, records in accepted.rejected.items():
            self.counters[f"rejected_records.{signal}.{reason}"] += records

    def seal_due(self) -> None:
        """Seal the segments that have reached their age; called several times a second."""
        for appender in self._appenders.values():
            if appender.seal_due():
                appender.seal()
                self._sealing = True
        self._kick_soon()

    def _kick_soon(self) -> None:
        """Start a sync at the end of this turn of the loop, so that it serves all that the turn brings."""
        if not self._kicked and (self._waiting or self._sealing):
            self._kicked = True
            self._loop.call_soon(self._kick)

    def _kick(self) -> None:
        self._kicked = False
        if not self._syncing and (self._waiting or self._sealing):
            self._syncing, self._sealing = True, False
            batch, self._waiting = self._waiting, []
            self._batches.put(batch)

    def _sync_forever(self) -> None:
        """The sync thread."""
        while (batch := self._batches.get()) is not None:
            self._sync()
            self._loop.call_soon_threadsafe(self._synced, batch)

    def _sync(self) -> None:
        for signal, appender in self._appenders.items():
            try:
                appender.sync()
            except SpoolUnavailableError as error:
                if time.monotonic() - self._logged_at > _LOG_EVERY_S:
                    self._logged_at = time.monotonic()
                    _log.error("spool_unavailable", signal=signal, error=str(error))

    def _synced(self, batch: list[_Waiting]) -> None:
        self._syncing = False
        for ticket, done, signal, accepted in batch:
            if ticket.durable:
                self._acknowledge(signal, accepted)
            else:
                self.refused("spool_unavailable")
            done(accepted if ticket.durable else None)
        self._kick_soon()

    @property
    def idle(self) -> bool:
        """Whether no request waits for its acknowledgement."""
        return not self._waiting and not self._syncing

    def close(self) -> None:
        """Stop the sync thread, then sync and seal what is open; blocks for the disk.

        Raises:
            SpoolUnavailableError: The last sync failed; nothing acknowledged is lost by it.
        """
        self._batches.put(None)
        self._thread.join()
        for appender in self._appenders.values():
            appender.close()
