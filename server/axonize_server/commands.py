"""The commands that read back what is stored: each parses its options, asks the API, and prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from axonize_server import show
from axonize_server.client import DEFAULT_API_URL, ApiClient, ApiError
from axonize_server.waterfall import print_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["api_option", "batches", "demo", "json_option", "print_json", "requests", "trace"]

_FULL_ID = 32
_MOST = 1000
_LISTED = 5


api_option = click.option(
    "--api",
    envvar="AXONIZE_API_URL",
    default=DEFAULT_API_URL,
    show_default=True,
    show_envvar=True,
    help="Where the collector's query API listens.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON as the API gives it.")


def _filters(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that requests and batches share."""
    for option in (
        click.option("--service", help="Only this service."),
        click.option("--since", default="24h", show_default=True, help="How far back, e.g. 15m, 6h, 7d."),
        click.option("--limit", default=20, show_default=True, type=click.IntRange(1, _MOST), help="How many."),
    ):
        command = option(command)
    return command


@click.command()
@_filters
@click.option("--model", help="Only this model.")
@click.option("--status", type=click.Choice(["ok", "error"]), help="Only with this outcome.")
@json_option
@api_option
def requests(api: str, *, as_json: bool, **filters: str | int | None) -> None:
    """List recent requests, newest first."""
    found = ApiClient(api).requests(**filters)
    if as_json:
        print_json({"requests": found})
    else:
        show.print_requests(show.make_console(), found)


@click.command()
@click.argument("wanted", metavar="ID")
@json_option
@api_option
def trace(api: str, wanted: str, *, as_json: bool) -> None:
    """Show one request as a waterfall.

    ID is a trace id, the beginning of one, or a request id. The latter two are looked up among
    the 1000 newest requests of the last 7 days.
    """
    client = ApiClient(api)
    found = client.trace(_trace_id(client, wanted))
    if as_json:
        print_json(found)
    else:
        print_trace(show.make_console(), found)


@click.command()
@_filters
@click.option("--instance-id", help="Only of this serving process (service.instance.id).")
@click.option("--request-seq", type=int, help="Only steps with this request; needs --instance-id.")
@click.option("--members", is_flag=True, help="Show who was in each.")
@json_option
@api_option
def batches(api: str, *, as_json: bool, members: bool, **filters: str | int | None) -> None:
    """List engine steps, newest first, and who shared them."""
    if filters["request_seq"] is not None and filters["instance_id"] is None:
        raise click.UsageError("--request-seq is unique within one process only: give --instance-id as well")
    found = ApiClient(api).batches(**filters)
    console = show.make_console()
    if as_json:
        print_json({"batches": found})
    elif not members:
        show.print_batches(console, found)
    for batch in found if members and not as_json else ():
        show.print_batch(console, batch)
        console.print()


@click.command()
@click.option(
    "--requests", default=40, show_default=True, type=click.IntRange(4, _MOST // 2), help="How many to serve."
)
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Keep the data here.")
@click.option("--once", is_flag=True, help="End afterwards instead of keeping the collector running.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line of figures from the store, and end.")
def demo(requests: int, data_dir: Path | None, *, once: bool, as_json: bool) -> None:
    """Serve a small model here and show what comes back from the store.

    The model is made on the spot; nothing is downloaded. Without an NVIDIA GPU the device is simulated, and
    labelled so wherever it appears.
    """
    from axonize_server.demo import DemoOptions, run  # noqa: PLC0415  no other command needs it

    run(DemoOptions(requests=requests, data_dir=data_dir, once=once, as_json=as_json))


def _trace_id(client: ApiClient, wanted: str) -> str:
    """Return the full trace id meant by a full one, a beginning or a request id.

    Raises:
        ApiError: none or several are meant.
    """
    if len(wanted) == _FULL_ID and all(digit in "0123456789abcdef" for digit in wanted):
        return wanted
    recent = client.requests(limit=_MOST, since="7d")
    begins = {request["trace_id"] for request in recent if request["trace_id"].startswith(wanted.lower())}
    named = {request["trace_id"] for request in recent if request["request_id"] == wanted}
    return _only(wanted, sorted(named or begins))


def _only(wanted: str, found: Sequence[str]) -> str:
    if len(found) == 1:
        return found[0]
    if not found:
        raise ApiError(404, f"no recent trace or request {wanted!r}; give the full trace id")
    raise ApiError(409, f"{wanted!r} fits {len(found)} traces: {', '.join(found[:5])}{' …' if found[5:] else ''}")


def print_json(answer: Any) -> None:
    """Print an answer of the API as it is."""
    click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
