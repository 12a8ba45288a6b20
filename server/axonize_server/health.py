"""How the collector is: store, registry, spool and counters, as JSON and as Prometheus text."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from axonize_core import __version__
from axonize_core.errors import StoreError
from axonize_server.refused import FOLDER
from axonize_server.spool import sealed_segments
from axonize_server.stats import read_stats, receivers_alive
from axonize_server.telemetry import Histogram, Sample, exposition

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from axonize_server.registry.base import Registry
    from axonize_server.registry.sync import RegistrySync
    from axonize_server.settings import Settings
    from axonize_server.store.clickhouse import ClickHouseStore

__all__ = ["Counters", "Health"]


class Counters:
    """What the writer did since it started; written by its loop, read by the API's threads."""

    def __init__(self) -> None:
        self.stored_segments = 0
        self.stored_bytes = 0
        self.refused_segments = 0
        self.insert_retries = 0
        self.repeated_inserts = 0
        """Inserts of which some table had the rows already, and took them no second time."""
        self.dropped_segments = 0
        """Acknowledged segments deleted unstored, since they were too old and the settings say so."""
        self.dropped_bytes = 0
        self.partings = 0
        """Refused segments in which the bad records were looked for."""
        self.refused_by_cause: Counter[str] = Counter()
        self.insert_seconds = Histogram(*_INSERT_BOUNDS_S)
        self.last_error: str | None = None
        """Why the newest attempt failed; None while inserts succeed."""

    def numbers(self) -> dict[str, int]:
        """Give the counts by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}


# What the parts of a counter's name behind the dots are.
_RECEIVER_LABELS = {
    "received_bytes": ("signal",),
    "acked_requests": ("signal",),
    "acked_records": ("signal",),
    "refused_requests": ("reason",),
    "rejected_records": ("signal", "reason"),
}
_INSERT_BOUNDS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Health:
    """Looks at all parts when asked; any thread."""

    def __init__(
        self,
        settings: Settings,
        store: ClickHouseStore,
        registry: Registry,
        counters: Counters,
        sync: RegistrySync | None = None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._registry = registry
        self._counters = counters
        self._sync = sync

    def report(self) -> dict[str, Any]:
        """Give the answer of `GET /api/v1/health`; it is "degraded" when something needs a person's eye."""
        store, registry = self._store_facts(), self._registry_facts()
        refused = self._refused_segments()
        spool = self._spool()
        waiting = refused or spool["too_old_segments"] or self._counters.last_error is not None
        good = store["ok"] and registry["ok"] and not waiting
        return {
            "status": "ok" if good else "degraded",
            "version": __version__,
            "store": store,
            "registry": registry,
            "spool": {**spool, "refused_segments": refused, "last_error": self._counters.last_error},
            "counters": {"writer": self._counters.numbers(), "registry": self._synced(), **self._received()},
        }

    def not_ready(self) -> str | None:
        """Say what the collector waits for before it can receive, store and answer; None when it can."""
        if not self._store.ping():
            return "the store does not answer"
        receivers, wanted = receivers_alive(self._settings.data_dir), self._settings.workers
        return None if receivers >= wanted else f"{receivers} of {wanted} receivers are up"

    def prometheus(self) -> str:
        """Give the answer of `GET /metrics`."""
        return exposition([*self._spool_samples(), *self._writer_samples(), *self._receiver_samples()])

    def _spool_samples(self) -> Iterator[Sample]:
        spool = self._spool()
        folder = self._settings.spool_dir
        for state, pattern in (("open", "*/*.open"), ("sealed", "*/*.pb"), ("refused", f"{FOLDER}/*/*.pb")):
            sizes = _sizes(folder.glob(pattern))
            yield Sample("axonize_spool_segments", len(sizes), {"state": state})
            yield Sample("axonize_spool_bytes", sum(sizes), {"state": state})
        yield Sample("axonize_spool_max_bytes", self._settings.spool_max_bytes)
        yield Sample("axonize_spool_oldest_age_seconds", spool["oldest_age_s"] or 0)
        yield Sample("axonize_spool_too_old_segments", spool["too_old_segments"] or 0)

    def _writer_samples(self) -> Iterator[Sample]:
        counters = self._counters
        for cause, number in (dict(counters.refused_by_cause) or {"data": 0}).items():
            yield Sample("axonize_writer_refused_segments_total", number, {"cause": cause})
        yield Sample("axonize_writer_dropped_segments_total", counters.dropped_segments, {"cause": "age"})
        yield Sample("axonize_writer_dropped_bytes_total", counters.dropped_bytes, {"cause": "age"})
        for name in ("stored_segments", "stored_bytes", "insert_retries", "repeated_inserts", "partings"):
            yield Sample(f"axonize_writer_{name}_total", getattr(counters, name))
        yield Sample("axonize_writer_failing", counters.last_error is not None)
        yield from counters.insert_seconds.samples("axonize_writer_insert_seconds")
        for name, number in self._synced().items():
            yield Sample(f"axonize_registry_{name}_total", number)

    def _receiver_samples(self) -> Iterator[Sample]:
        """By worker, since each counts from its own start."""
        for facts in read_stats(self._settings.data_dir):
            for name, number in facts.get("counters", {}).items():
                metric, *whats = name.split(".")
                if metric not in _RECEIVER_LABELS:  # of another version, in the moment of an upgrade
                    continue
                labels = dict(zip(_RECEIVER_LABELS[metric], whats, strict=False))
                yield Sample(f"axonize_receiver_{metric}_total", number, {"worker": str(facts["worker"]), **labels})

    def _store_facts(self) -> dict[str, Any]:
        facts = {"dsn": self._store.dsn.text, "version": self._store.version}
        try:
            return {**facts, "ok": True, "rows": self._store.rows()}
        except StoreError as e:
            return {**facts, "ok": False, "rows": {}, "error": str(e)}

    def _registry_facts(self) -> dict[str, Any]:
        """The registry is well when it answers and what agents report arrives in it."""
        error = self._sync.last_error if self._sync else None
        return {"dsn": self._registry.text, "ok": self._registry.ping() and error is None, "last_error": error}

    def _synced(self) -> dict[str, int]:
        return self._sync.numbers() if self._sync else {}

    def _spool(self) -> dict[str, float | None]:
        segments, now_ns = sealed_segments(self._settings.spool_dir), time.time_ns()
        ages_s = [segment.age_s(now_ns) for segment in segments]
        return {
            "segments": len(segments),
            "bytes": sum(segment.size_bytes for segment in segments),
            "oldest_age_s": max(ages_s, default=None),
            "too_old_segments": sum(age_s > self._settings.spool_max_age_s for age_s in ages_s),
        }

    def _refused_segments(self) -> int:
        return sum(1 for _ in self._settings.spool_dir.glob("refused/*/*.pb"))

    def _received(self) -> dict[str, Any]:
        """Sum the receivers' counters."""
        totals: dict[str, int] = {}
        for facts in read_stats(self._settings.data_dir):
            counters: Mapping[str, int] = facts.get("counters", {})
            for name, value in counters.items():
                totals[name] = totals.get(name, 0) + value
        return {"receivers": totals}


def _sizes(paths: Iterable[Path]) -> list[int]:
    """The bytes of files, without those that went meanwhile."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.append(path.stat().st_size)
    return found
