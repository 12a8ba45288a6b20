"""How the collector is: store, registry, spool and counters, as JSON and as Prometheus text."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from axonize_core import __version__
from axonize_core.errors import StoreError
from axonize_server.spool import sealed_segments
from axonize_server.stats import read_stats, receivers_alive

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        self.last_error: str | None = None
        """Why the newest attempt failed; None while inserts succeed."""

    def numbers(self) -> dict[str, int]:
        """Give the counts by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, int)}


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
        spool = self._spool()
        lines = [f"axonize_spool_{name} {value or 0}" for name, value in spool.items()]
        lines += [f"axonize_writer_{name}_total {value}" for name, value in self._counters.numbers().items()]
        lines += [f"axonize_registry_{name}_total {value}" for name, value in self._synced().items()]
        for name, value in self._received().get("receivers", {}).items():
            metric, _, what = name.partition(".")
            lines.append(f'axonize_receiver_{metric}_total{{of="{what}"}} {value}')
        return "\n".join(lines) + "\n"

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
