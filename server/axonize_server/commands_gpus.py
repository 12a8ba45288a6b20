"""`axonize gpus` and `axonize top`: who holds which GPU, and what they do."""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click
from rich.live import Live
from rich.text import Text

from axonize_server import show
from axonize_server.client import ApiClient, ApiError, ApiUnreachableError
from axonize_server.commands import api_option, json_option, print_json
from axonize_server.show_gpus import print_gpus
from axonize_server.show_top import top_lines

if TYPE_CHECKING:
    from rich.console import Console

    from axonize_server.client import GpuTree

__all__ = ["gpus", "top"]

_AGO = re.compile(r"\d{1,9}[smhd]")
_node = click.option("--node", help="Only the GPUs of this machine.")


@click.command()
@click.argument("wanted", metavar="[ID]", required=False)
@click.option("--at", metavar="TIME", help="As it was then: 2026-03-01T10:20 (local time), with Z (UTC), or 15m ago.")
@_node
@json_option
@api_option
def gpus(api: str, wanted: str | None, at: str | None, *, node: str | None, as_json: bool) -> None:
    """Show GPUs, their slices and who holds them, now or at a time.

    ID is the uuid of a GPU or a slice, or the beginning of one, and shows only that. Who held slice X at time T
    is: axonize gpus X --at T. What nobody reported for a day is left out.
    """
    found = ApiClient(api).gpus(at=_moment(at), node=node)
    if wanted:
        found = _only(found, wanted)
    if as_json:
        print_json(found)
    else:
        print_gpus(show.make_console(), found, at=at)


@click.command()
@_node
@click.option("--window", default="60s", show_default=True, help="Over how long rates are taken, e.g. 10s, 5m.")
@click.option(
    "--interval", default=2.0, show_default=True, type=click.FloatRange(0.2), help="Seconds between two looks."
)
@click.option("--once", is_flag=True, help="Print one look and end; so does output that is no terminal.")
@api_option
def top(api: str, *, node: str | None, window: str, interval: float, once: bool) -> None:
    """Watch GPUs, slices and engines: load, requests and tokens per second.

    Readings are the newest there are; rates count requests when they end and tokens in the step that made them.
    """
    client = ApiClient(api)
    console = show.make_console()
    if once or not console.is_terminal:
        for line in _look(client, console, node, window, height=None):
            console.print(line, soft_wrap=True)
        return
    _watch(client, console, node, window, interval)


def _look(client: ApiClient, console: Console, node: str | None, window: str, height: int | None) -> list[Text]:
    return top_lines(console, client.gpus(node=node), client.engines(window=window), height=height)


def _watch(client: ApiClient, console: Console, node: str | None, window: str, interval: float) -> None:
    """Look again and again until Ctrl-C; a collector that is away for a while is waited for."""
    shown = _look(client, console, node, window, console.height)
    with Live(_screen(shown), console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                live.update(_screen(shown), refresh=True)
                time.sleep(interval)
                shown = _look(client, console, node, window, console.height)
            except KeyboardInterrupt:
                return
            except (ApiError, ApiUnreachableError) as e:
                shown = [Text(str(e), "bold red"), *shown[1:]]


def _screen(lines: list[Text]) -> Text:
    text = Text("\n").join(lines)
    text.no_wrap = True
    return text


def _moment(at: str | None) -> str | None:
    """Give a time as the API wants it: what names no zone is local time.

    Raises:
        click.BadParameter: It is no time.
    """
    if at is None or _AGO.fullmatch(at):
        return at
    whole, _, fraction = at.replace(" ", "T").partition(".")
    if fraction:
        return at.replace(" ", "T")  # to the nanosecond, as the API prints it
    try:
        moment = datetime.fromisoformat(whole.replace("Z", "+00:00"))
    except ValueError as e:
        raise click.BadParameter(f"{at!r} is no time; write 2026-03-01T10:20, or 15m for so long ago") from e
    return f"{moment.astimezone(timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def _only(found: GpuTree, wanted: str) -> GpuTree:
    """Keep the GPU or the slice whose uuid is, or begins with, what is wanted.

    Raises:
        ApiError: there is none.
    """
    kept = []
    for gpu in found["gpus"]:
        if gpu["gpu_uuid"].startswith(wanted):
            kept.append(gpu)
            continue
        resources = [one for one in gpu["compute_resources"] if one["compute_resource"].startswith(wanted)]
        if resources:
            kept.append({**gpu, "compute_resources": resources})
    if not kept:
        raise ApiError(404, f"no GPU or slice {wanted!r} at {found['at']}; see axonize gpus")
    return {**found, "gpus": kept}
