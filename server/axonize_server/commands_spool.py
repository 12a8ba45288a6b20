"""`axonize spool`: looking into the spool, and putting back what was set aside."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from axonize_server import units
from axonize_server.inspect_spool import list_spool
from axonize_server.inspect_spool import verify as verify_spool
from axonize_server.refused import put_back, read_refusal, refused_segments
from axonize_server.settings import load_settings
from axonize_server.settings_texts import options
from axonize_server.show import make_console
from axonize_server.show_spool import print_listing, print_verified

if TYPE_CHECKING:
    from pathlib import Path

    from axonize_server.spool import Segment

__all__ = ["spool"]

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, with full ids, times and reasons.")


@click.group()
def spool() -> None:
    """Look into the spool: what is acknowledged and not in the store yet.

    A segment is open while a receiver writes it, sealed until the writer has stored it, and refused when the
    store does not take it. These commands read the data directory, whether a collector runs there or not.
    """


@spool.command("ls")
@options("data_dir")
@_json
def ls(*, as_json: bool, **flags: Any) -> None:
    """List segments by state, oldest first.

    Records are spans, data points or log records. Age counts from the segment's first request. Sealed ones
    that stay mean that the store does not keep up or is away: `axonize doctor` says more.
    """
    found = list_spool(_spool_dir(flags))
    if as_json:
        click.echo(_json_text({"segments": [_as_json(listed) for listed in found]}))
    else:
        print_listing(make_console(), found, now_ns=time.time_ns())


@spool.command()
@options("data_dir")
@_json
def verify(*, as_json: bool, **flags: Any) -> None:
    """Check every segment's header and checksums; changes nothing, and exits with 1 when one is damaged.

    A torn end of an open segment is what a killed receiver left in the middle of a write. It was never
    acknowledged; the next start of the collector cuts it off. Anything else damaged was acknowledged: look
    at the disk, and keep the file.
    """
    found = verify_spool(_spool_dir(flags))
    if as_json:
        click.echo(_json_text({"segments": [_as_json(checked) for checked in found]}))
    else:
        print_verified(make_console(), found)
    raise SystemExit(int(any(checked.problem for checked in found)))


@spool.command()
@options("data_dir")
@click.argument("ids", metavar="[ID]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All that are set aside.")
@click.option(
    "--stored-in-part", is_flag=True, help="Also those whose rows may be stored already: they could count twice."
)
@_json
def replay(ids: tuple[str, ...], *, everything: bool, stored_in_part: bool, as_json: bool, **flags: Any) -> None:
    """Put refused segments back for the writer, once the cause is gone.

    ID is what `axonize spool ls` shows, or any part of a full id that only one has. A segment keeps its id,
    and what the store already has of it is not counted again as long as its tables remember it (1,000 inserts).
    """
    if bool(ids) == everything:
        raise click.UsageError("name the segments to put back, or give --all")
    spool_dir = _spool_dir(flags)
    there = refused_segments(spool_dir)
    chosen = there if everything else [_named(wanted, there) for wanted in dict.fromkeys(ids)]
    kept = [] if stored_in_part else [one for one in chosen if read_refusal(one.path).stored_in_part]
    back = [one for one in chosen if one not in kept]
    for segment in back:
        _put_back(spool_dir, segment)
    if as_json:
        click.echo(_json_text({"put_back": [one.id for one in back], "kept": [one.id for one in kept]}))
        return
    click.echo(f"put back: {units.plural(len(back), 'segment')}")
    if kept:
        click.echo(f"kept: {units.plural(len(kept), 'segment')} whose rows may be stored already (--stored-in-part)")


def _put_back(spool_dir: Path, segment: Segment) -> None:
    try:
        put_back(spool_dir, segment)
    except OSError as e:
        raise click.ClickException(f"segment {segment.id!r} stays where it is: {e}") from e


def _named(wanted: str, there: list[Segment]) -> Segment:
    """The one refused segment whose id has that part."""
    found = [segment for segment in there if wanted in segment.id]
    if len(found) != 1:
        what = "no refused segment has" if not found else f"{len(found)} refused segments have"
        raise click.ClickException(f"{what} {wanted!r} in its id; `axonize spool ls` lists them")
    return found[0]


def _spool_dir(flags: dict[str, Any]) -> Path:
    found = load_settings(**flags).spool_dir
    if not found.is_dir():
        raise click.ClickException(f"there is no spool at {str(found)!r}; name the collector's --data-dir")
    return found


def _as_json(row: Any) -> dict[str, Any]:
    """A row's fields, and those of what it holds."""
    facts = row._asdict()
    return {name: value._asdict() if hasattr(value, "_asdict") else value for name, value in facts.items()}


def _json_text(facts: dict[str, Any]) -> str:
    return json.dumps(facts, indent=2, ensure_ascii=False, default=str)
