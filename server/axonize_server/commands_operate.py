"""The commands that run or prepare a collector; their options are the collector's settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from axonize_server.migrate import Applied, history_statements, migrate_registry, migrate_store
from axonize_server.registry.address import open_registry
from axonize_server.settings import load_settings
from axonize_server.settings_texts import options
from axonize_server.store.clickhouse import ClickHouseStore

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["collector", "migrate"]


@click.command()
@options()
def collector(**flags: Any) -> None:
    """Receive OTLP, store it and answer questions.

    Every option is also an environment variable (AXONIZE_HTTP_PORT …) and a key of the YAML file named by
    AXONIZE_CONFIG. SIGTERM stops accepting, stores what was acknowledged, and ends.
    """
    from axonize_server.collector import run  # noqa: PLC0415  --help need not load the servers

    settings = load_settings(**flags)
    raise SystemExit(run(settings))


@click.command()
@options("data_dir", "store", "store_cluster", "registry")
@click.option("--dry-run", is_flag=True, help="Print the SQL that would run, and run nothing.")
def migrate(*, dry_run: bool, **flags: Any) -> None:
    """Bring store and registry to this version's schema.

    The collector does this itself when it starts; a chDB directory in use by one cannot be opened here.
    """
    settings = load_settings(**flags)
    store = ClickHouseStore(settings.store, settings.store_cluster)
    try:
        applied = migrate_store(store, settings, dry_run=dry_run)
        if dry_run and applied and applied[0].number == 1:
            applied.insert(0, Applied(0, "schema_migrations", history_statements(store, settings)))
        _report("store", applied, dry_run=dry_run)
        _report("registry", migrate_registry(open_registry(settings.registry), dry_run=dry_run), dry_run=dry_run)
    finally:
        store.close()


def _report(what: str, applied: Sequence[Applied], *, dry_run: bool) -> None:
    """Print one line per file, or with ``dry_run`` the statements themselves as a script."""
    if not applied:
        click.echo(f"{'-- ' if dry_run else ''}{what}: up to date")
    for migration in applied:
        if not dry_run:
            click.echo(f"{what}: applied {migration.name}")
            continue
        click.echo(f"-- {what}: {migration.name}")
        for statement in migration.statements:
            click.echo(f"{statement};\n")
