"""From reports in the store to the three layers in the registry.

One thread of the writer process. It reads on from where it stopped, so a registry that was away catches up, and
nothing of ingest waits for it. What it reads twice makes no difference (see `sightings`).
"""

from __future__ import annotations

import gc
import json
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from axonize_core.errors import AxonizeError
from axonize_server.migrate import migrate_registry
from axonize_server.registry.layers import LAYERS, Layer, Thing, rfc3339, rows_of
from axonize_server.registry.reports import read_again, read_reports
from axonize_server.registry.sightings import GAP_NS, Sightings, is_torn, merge, retold

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from axonize_server.registry.base import Registry, Run
    from axonize_server.store.clickhouse import ClickHouseStore

__all__ = ["RegistrySync", "apply"]

_log = structlog.get_logger("axonize.registry")
_INTERVAL_S = 2.0
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 30.0

Row = dict[str, Any]


class RegistrySync:
    """Keeps the registry at what the store has; its numbers may be read from any thread."""

    def __init__(self, store: ClickHouseStore, registry: Registry, *, clock: Callable[[], int] = time.time_ns) -> None:
        self.synced_things = 0
        self.failed_rounds = 0
        self.last_error: str | None = None
        """Why the newest round failed; None while rounds succeed."""
        self._store = store
        self._registry = registry
        self._clock = clock
        self._mark = f"gpu_inventory of {store.dsn.text}"
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._migrated = False

    def start(self) -> None:
        """Begin, on a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="axonize-registry", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the round under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(30.0)

    def numbers(self) -> dict[str, int]:
        """Give the counts by name."""
        return {"synced_things": self.synced_things, "failed_rounds": self.failed_rounds}

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stop.wait(wait_s):
            try:
                self.sync()
                self.last_error, wait_s = None, _INTERVAL_S
            except Exception as e:  # noqa: BLE001 - whatever it is, the next round may work; it is counted and shown
                self._failed(e)
                wait_s = min(max(wait_s * 2, _FIRST_WAIT_S), _LONGEST_WAIT_S)

    def _failed(self, error: Exception) -> None:
        if self.last_error is None:
            _log.warning("registry_sync_failed", error=str(error), exc_info=not isinstance(error, AxonizeError))
        self.failed_rounds += 1
        self.last_error = str(error) or repr(error)

    def sync(self) -> int:
        """Take over all reports there are; give how many things they were about.

        Raises:
            StoreError: Store or registry is away; what was taken over stays.
            MigrationError: The registry's schema is not ours.
        """
        if not self._migrated:
            migrate_registry(self._registry)
            self._migrated = True
        things, more = 0, True
        while more and not self._stop.is_set():
            with _uncollected():
                taken, more = self._round()
            things += taken
        self.synced_things += things
        return things

    def _round(self) -> tuple[int, bool]:
        with self._registry.reading() as run:
            marked = run("SELECT value FROM registry_state WHERE name = %s", (self._mark,))
        read_ns = int(marked[0][0]) if marked else 0
        reports = read_reports(self._store, read_ns)
        now_ns = self._clock()
        with self._registry.transaction() as run:
            if reports is not None:
                apply(self._registry, run, reports.sightings, now_ns, partial(read_again, self._store))
                self._remember(run, reports.until_ns)
            close_silent(run, now_ns)
        return (len(reports.sightings), reports.more) if reports is not None else (0, False)

    def _remember(self, run: Run, until_ns: int) -> None:
        run.upsert("registry_state", ("name",), ("name", "value"), [{"name": self._mark, "value": str(until_ns)}])


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python from looking for cycles: a round makes many objects and no cycle, and looking took a third of it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def close_silent(run: Run, now_ns: int) -> None:
    """End the contexts nobody reports any more, at the time they were last seen."""
    run(
        "UPDATE resource_contexts SET valid_to = last_seen_at WHERE valid_to IS NULL AND last_seen_at < %s",
        (rfc3339(max(0, now_ns - GAP_NS)),),
    )


def apply(
    registry: Registry,
    run: Run,
    new: Mapping[Thing, Sightings],
    now_ns: int,
    again: Callable[[list[Thing]], Mapping[Thing, Sightings]],
) -> None:
    """Merge sightings into what is known, and rewrite the rows of the things they are about: one statement a table.

    Args:
        registry: where.
        run: its transaction.
        new: what was reported, each report by itself.
        now_ns: by the collector's clock.
        again: gives all reports there are about some things, for those that a late zero tears.
    """
    names = {thing: "/".join(thing) for thing in new}
    known = _load(registry, run, list(names.values()))
    torn = [thing for thing in new if new[thing].zeros and is_torn(known.get(names[thing], Sightings()), new[thing])]
    points = again(torn) if torn else {}
    documents: list[Row] = []
    rows: dict[str, list[Row]] = {name: [] for name in LAYERS}
    for thing in sorted(new):  # in the order of the keys, which is that of the database's pages
        seen, before = new[thing], known.get(names[thing]) or Sightings()
        if thing in points:
            before = retold(before, points[thing])
        merged = merge(before, seen)
        made = rows_of(thing, merged, now_ns)
        if len(made) < before.rows:
            _forget(run, thing, len(made))
        merged.rows = len(made)
        rows[thing.layer] += made
        documents.append({"thing": names[thing], "document": msgspec.json.encode(merged).decode()})
    for name, layer in LAYERS.items():
        if rows[name]:
            run.upsert(layer.table, layer.key, layer.columns, rows[name])
    run.upsert("gpu_sightings", ("thing",), ("thing", "document"), documents)


def _load(registry: Registry, run: Run, names: list[str]) -> dict[str, Sightings]:
    found = run(
        f"SELECT thing, document FROM gpu_sightings WHERE thing {registry.among}",  # noqa: S608
        (json.dumps(names),),
    )
    decode = msgspec.json.Decoder(Sightings).decode
    return {name: decode(document) for name, document in found}


def _forget(run: Run, thing: Thing, kept: int) -> None:
    """Delete the rows that are no more: late reports showed two stretches to be one."""
    layer: Layer = LAYERS[thing.layer]
    values = {"uuid": thing.id, "gpu_uuid": thing.id, "tenant_id": thing.tenant, "context_id": thing.id}
    of_thing = [column for column in layer.key if column != layer.order]
    conditions = [f"{column} = %s" for column in of_thing]
    parameters: list[str | int] = [values[column] for column in of_thing]
    if layer.order:
        conditions.append(f"{layer.order} > %s")
        parameters.append(kept)
    run(f"DELETE FROM {layer.table} WHERE {' AND '.join(conditions)}", parameters)  # noqa: S608
