"""What ``axonize doctor`` says of the export: endpoints, what an agent sent and holds, and queues without an agent."""

from __future__ import annotations

import socket
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from axonize_core.export.endpoint import GRPC, queue_key
from axonize_core.export.otlp import wanted_endpoints
from axonize_core.export.queue_directory import leftovers
from axonize_core.export.senders import GRPC_MISSING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from axonize_core.export.endpoint import Endpoint
    from axonize_core.settings import Settings

__all__ = ["Line", "agent_lines", "endpoint_lines", "queue_lines"]

_CAUSES = {
    "full": "because the queue was full",
    "age": "because they waited too long",
    "unreadable": "because their file was damaged",
    "shutdown": "because the agent ended and they were in memory only",
    "overrun": "because they came faster than they could be encoded",
    "encoding": "because they could not be encoded",
}


class Line(NamedTuple):
    """``ok``, ``note`` or ``problem``, and what to say."""

    level: str
    text: str


def agent_lines(facts: Mapping[str, Any]) -> Iterator[Line]:
    """Say what became of each signal, from the exporter's facts in an agent's status."""
    for signal, lane in facts.get("lanes", {}).items():
        what = "spans" if signal == "traces" else "GPU samples"
        yield _flow(what, lane)
        if lane["fallback"]:
            yield Line("problem", f"{what} wait in memory only, the disk queue does not work: {lane['fallback']}")
        for reason, count in lane["refused"].items():
            yield Line("problem", f"{count:,} {what} were refused by the collector for good: {reason}")
        for cause, count in lane["dropped"].items():
            yield Line("problem", f"{count:,} {what} were dropped {_CAUSES.get(cause, cause)}")
        if lane["torn_bytes"]:
            yield Line("note", f"{lane['torn_bytes']:,} bytes of {what} were torn when the agent or machine died")


def _flow(what: str, lane: Mapping[str, Any]) -> Line:
    sent, text = f"{lane['sent']:,} {what} sent to {lane['endpoint']}", "nothing waits"
    if lane["waiting"]:
        place = lane["directory"] if not lane["memory_bytes"] else "memory"
        text = f"{lane['waiting']:,} wait in {place} ({_size(lane['waiting_bytes'])}"
        text += f", oldest {lane['oldest_age_s']:.0f} s)" if lane["oldest_age_s"] is not None else ")"
    if lane["failing"]:
        return Line("problem", f"{sent}, {text}: {lane['last_error']}; next try in {lane['next_try_s']:.0f} s")
    return Line("ok", f"{sent}, {text}")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB" if size_bytes >= 2**20 else f"{size_bytes / 2**10:.1f} KiB"


def queue_lines(settings: Settings) -> Iterator[Line]:
    """Name the queues that wait without an agent, ours and those of other export settings."""
    if settings.state_dir is None:
        return
    own = queue_key(wanted_endpoints())
    for left in leftovers(settings.state_dir):
        text = f"{_size(left.file_bytes)} wait in {left.path}, left by an agent that is gone"
        if left.path.name.split(".")[0] == own:
            yield Line("note", f"{text}; the next one with these export settings sends them")
            continue
        urls = ", ".join(sorted(left.about.get("endpoints", {}).values())) or "an unknown endpoint"
        yield Line("note", f"{text} and exported to {urls}; only an agent with its settings sends them, or delete them")


def endpoint_lines(timeout_s: float) -> Iterator[Line]:
    """Say whether anybody listens where the signals go, and what their variables say that cannot be done."""
    endpoints = wanted_endpoints()
    for problem in dict.fromkeys(problem for endpoint in endpoints for problem in endpoint.problems):
        yield Line("problem", problem)
    if any(e.protocol == GRPC for e in endpoints) and not find_spec("grpc"):
        yield Line("problem", GRPC_MISSING)
    for endpoint in {e.origin: e for e in endpoints}.values():
        yield _reach(endpoint, timeout_s)


def _reach(endpoint: Endpoint, timeout_s: float) -> Line:
    address = endpoint.address()
    if address is None:
        return Line("note", f"OTLP endpoint {endpoint.shown_url} is not tried here")
    try:
        with socket.create_connection(address, timeout_s):
            return Line("ok", f"OTLP endpoint {endpoint.origin} can be reached")
    except OSError as e:
        text = f"OTLP endpoint {endpoint.origin} cannot be reached: {e}; start one: axonize collector"
        return Line("problem", text)
