"""What came back from the store after the demo's load: figures, discrepancies, and how to show it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from axonize_server import show
from axonize_server.client import DEFAULT_API_URL
from axonize_server.waterfall import print_trace

if TYPE_CHECKING:
    from rich.console import Console

    from axonize_server.client import ApiClient, Batch, Health, Request

__all__ = ["Result", "discrepancies", "figures", "print_next", "print_result", "read_back", "store_rows"]

_POLL_S = 0.3
_VISIBLE_WITHIN_S = 60.0
_SINCE = "1h"
_MOST = 1000
_SHOWN = 15
_LOSSES = ("dropped", "refused", "rejected", "lost", "failed")


@dataclass(frozen=True)
class Result:
    """The load as the store has it.

    ``expected`` is how many requests were served, ``batches`` are the newest thousand steps, ``unbatched`` the
    requests that were served and yet are in no step at all.
    """

    expected: int
    requests: list[Request]
    batches: list[Batch]
    unbatched: list[Request]
    rows_before: dict[str, int]
    rows: dict[str, int]
    losses: dict[str, int]

    def added(self, table: str) -> int:
        """Return the rows the table gained."""
        return self.rows.get(table, 0) - self.rows_before.get(table, 0)


def read_back(client: ApiClient, run_id: str, expected: int, before: dict[str, int]) -> Result:
    """Ask until all requests are visible and the store stopped growing, a minute at most."""
    deadline = time.monotonic() + _VISIBLE_WITHIN_S
    earlier: dict[str, int] = {}
    while True:
        health = client.health()
        requests = _requests_of(client, run_id, expected)
        rows = store_rows(health)
        settled = len(requests) >= expected and rows == earlier and not health["spool"].get("segments")
        if settled or time.monotonic() > deadline:
            break
        earlier = rows
        time.sleep(_POLL_S)
    batches = _batches_of(client, requests)
    return Result(expected, requests, batches, _unbatched(client, requests, batches), before, rows, _losses(health))


def store_rows(health: Health) -> dict[str, int]:
    """Return the rows by table."""
    return {table: int(rows) for table, rows in health["store"].get("rows", {}).items()}


def figures(result: Result, served: dict[str, Any]) -> dict[str, Any]:
    """Return the demo's one JSON line; all but the engine's own count of drops comes from the store."""
    provenances = {row["gpu_provenance"] for row in (*result.requests, *result.batches)} - {None, ""}
    return {
        "requests": len(result.requests),
        "spans": result.added("spans"),
        "batches": result.added("batches"),
        "dropped": _dropped(result, served),
        "store_rows": sum(result.rows.values()),
        "gpu_provenance": ",".join(sorted(str(one) for one in provenances)) or "unavailable",
    }


def discrepancies(result: Result, served: dict[str, Any]) -> list[str]:
    """Return in words what the store lacks or has too much of."""
    wrong = []
    if len(result.requests) != result.expected:
        wrong.append(f"{len(result.requests)} of {result.expected} requests visible")
    failed = sum(request["status"] == "error" for request in result.requests)
    if failed != served["failed"]:
        wrong.append(f"{failed} failed requests instead of {served['failed']}")
    if result.unbatched:
        wrong.append(f"{len(result.unbatched)} requests in no batch")
    if dropped := _dropped(result, served):
        wrong.append(f"{dropped} records dropped ({result.losses})")
    return wrong


def print_result(console: Console, client: ApiClient, result: Result) -> None:
    """Show the requests, the slowest one's waterfall, and the batch in which it began."""
    _heading(console, "The requests, newest first", "axonize requests")
    show.print_requests(console, result.requests, most=_SHOWN)
    slowest = max(result.requests, key=lambda r: r["duration_ms"] if r["status"] == "ok" else 0.0, default=None)
    if slowest is None:
        return
    _heading(console, "The slowest of them", "axonize trace ID")
    print_trace(console, client.trace(slowest["trace_id"]))
    if shared := [batch for batch in _steps_of(client, slowest, _MOST) if _first_step(batch, slowest)]:
        _heading(console, "Who shared its first step", "axonize batches --members")
        show.print_batch(console, shared[0])


def print_next(console: Console, client: ApiClient, *, stays: bool) -> None:
    """Show what to do next, while the collector stays or after it has ended."""
    api = "" if client.url == DEFAULT_API_URL else f" --api {client.url}"
    _heading(console, "What next")
    if stays:
        console.print(f"  axonize requests --status error{api}")
        console.print(f"  axonize batches --members --limit 3{api}")
    else:
        console.print("  axonize demo          the same, with a collector that stays for you to explore")
    console.print("  axonize doctor        what is installed, connected, dropped and refused")
    console.print("  axonize collector     a collector of your own; then, in your server:")
    console.print("                        pipe = axonize_hf.instrument(pipeline(...))")


def _first_step(batch: Batch, request: Request) -> bool:
    """Return whether this step prefilled that request."""
    return any(
        member["request_seq"] == request["request_seq"] and member["prefill_tokens"] for member in batch["members"]
    )


def _heading(console: Console, title: str, command: str = "") -> None:
    console.print()
    console.print(Text.assemble((title, "bold underline"), (f"   {command}" if command else "", "dim")))
    console.print()


def _requests_of(client: ApiClient, run_id: str, expected: int) -> list[Request]:
    found = client.requests(limit=max(_MOST, expected), since=_SINCE)
    return [request for request in found if (request["request_id"] or "").startswith(f"{run_id}-")]


def _batches_of(client: ApiClient, requests: list[Request]) -> list[Batch]:
    instances = {request["instance_id"] for request in requests}
    return [
        batch
        for instance in sorted(one for one in instances if one)
        for batch in client.batches(limit=_MOST, since=_SINCE, instance_id=instance)
    ]


def _unbatched(client: ApiClient, requests: list[Request], batches: list[Batch]) -> list[Request]:
    """Return the served requests without a step, asking one by one for those outside ``batches``."""
    seen = {member["request_seq"] for batch in batches for member in batch["members"]}
    unseen = [request for request in requests if request["status"] == "ok" and request["request_seq"] not in seen]
    return [request for request in unseen if not _steps_of(client, request, 1)]


def _steps_of(client: ApiClient, request: Request, most: int) -> list[Batch]:
    instance_id, request_seq = request["instance_id"], request["request_seq"]
    return client.batches(limit=most, since=_SINCE, instance_id=instance_id, request_seq=request_seq)


def _losses(health: Health) -> dict[str, int]:
    """Return the collector's counters of things it did not keep, where not zero."""
    counters = health["counters"].items()
    return {
        name: int(value)
        for name, value in counters
        if isinstance(value, (int, float)) and value and any(word in name for word in _LOSSES)
    }


def _dropped(result: Result, served: dict[str, Any]) -> int:
    """Return what was lost anywhere on the way: in the engine, in the agent (seen as incomplete), in the collector."""
    incomplete = sum(bool(request["incomplete"]) for request in result.requests)
    return int(served["dropped"]) + incomplete + sum(result.losses.values())
