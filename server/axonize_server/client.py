"""The query API seen from outside: what the commands and the demo read through.

The shapes are those of ARCHITECTURE.md §9: times are RFC 3339 strings, durations floats in ms, unknowns None.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, TypedDict, cast

from axonize_core.errors import AxonizeError

__all__ = [
    "DEFAULT_API_URL",
    "ApiClient",
    "ApiError",
    "ApiUnreachableError",
    "Batch",
    "ComputeResource",
    "Context",
    "Engine",
    "Engines",
    "Gpu",
    "GpuTree",
    "Health",
    "Member",
    "Reading",
    "Request",
    "Span",
    "Trace",
]

DEFAULT_API_URL = "http://127.0.0.1:4319"


class Request(TypedDict):
    """One request as the store knows it."""

    trace_id: str
    span_id: str
    request_id: str | None
    request_seq: int | None
    instance_id: str | None
    service: str
    model: str
    engine: str | None
    operation: str | None
    start_time: str
    duration_ms: float
    queue_ms: float | None
    queue_provenance: str | None
    ttft_ms: float | None
    tpot_ms: float | None
    input_tokens: int | None
    output_tokens: int | None
    finish_reason: str | None
    status: str
    error_type: str | None
    incomplete: bool
    compute_resource: str | None
    gpu_provenance: str | None


class Span(TypedDict):
    """One span of a trace; attribute values are JSON values, bytes as ``{"$bytes": base64}``."""

    span_id: str
    parent_span_id: str | None
    name: str
    kind: str
    phase: str | None
    start_time: str
    duration_ms: float
    status: str
    status_message: str
    service: str
    scope: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    events: list[dict[str, Any]]
    links: list[dict[str, Any]]


class Trace(TypedDict):
    """All spans of one trace in start order."""

    trace_id: str
    spans: list[Span]


class Member(TypedDict):
    """One request's share of one engine step; the ids are None until the request's own span is stored."""

    request_seq: int
    prefill_tokens: int
    decode_tokens: int
    context_tokens: int
    trace_id: str | None
    request_id: str | None


class Batch(TypedDict):
    """One engine step and the requests that shared it."""

    trace_id: str
    span_id: str
    step_seq: int | None
    instance_id: str | None
    service: str
    engine: str | None
    model: str
    start_time: str
    duration_ms: float
    schedule_ms: float | None
    execute_ms: float | None
    update_ms: float | None
    device_ms: float | None
    size: int
    prefill_tokens: int
    decode_tokens: int
    running: int | None
    waiting: int | None
    kv_cache_usage: float | None
    compute_resource: str | None
    gpu_provenance: str | None
    members: list[Member]


class Reading(TypedDict):
    """What a GPU or a slice last read; a field the device does not support is None."""

    time: str
    utilization: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    power_w: float | None
    energy_j: float | None
    temperature_c: float | None
    provenance: str | None


class Context(TypedDict):
    """What a process calls the resource it holds, who it is, and since when."""

    context_id: str
    device: str | None
    host: str | None
    pid: int | None
    instance_id: str | None
    service: str | None
    engine: str | None
    rank: int | None
    container: str | None
    pod: str | None
    namespace: str | None
    node: str | None
    sharing: str | None
    provenance: str | None
    valid_from: str
    valid_to: str | None
    last_seen_at: str


class ComputeResource(TypedDict):
    """A whole GPU or a slice of one; what nobody described yet has only its uuid."""

    compute_resource: str
    generation: int | None
    kind: str | None
    mig_profile: str | None
    gpu_instance_id: int | None
    compute_instance_id: int | None
    placement_start: int | None
    placement_size: int | None
    memory_bytes: int | None
    sm_share: float | None
    provenance: str | None
    first_seen_at: str | None
    last_seen_at: str | None
    gone_at: str | None
    reading: Reading | None
    contexts: list[Context]


class Gpu(TypedDict):
    """One physical GPU."""

    gpu_uuid: str
    model: str | None
    vendor: str | None
    architecture: str | None
    node: str | None
    pci_bus_id: str | None
    memory_bytes: int | None
    driver_version: str | None
    mig_enabled: bool | None
    provenance: str | None
    first_seen_at: str | None
    last_seen_at: str | None
    gone_at: str | None
    reading: Reading | None
    compute_resources: list[ComputeResource]


class GpuTree(TypedDict):
    """All GPUs as they were at a time."""

    at: str
    gpus: list[Gpu]


class Engine(TypedDict):
    """What one serving process and model did per second."""

    instance_id: str | None
    service: str | None
    engine: str | None
    model: str | None
    compute_resources: list[str]
    requests_per_s: float
    errors_per_s: float
    input_tokens_per_s: float | None
    output_tokens_per_s: float | None
    ttft_p50_ms: float | None


class Engines(TypedDict):
    """All engines over a window of time."""

    window_s: float
    engines: list[Engine]


class Health(TypedDict):
    """How the collector is, and how much it holds."""

    status: str
    version: str
    store: dict[str, Any]
    registry: dict[str, Any]
    spool: dict[str, Any]
    counters: dict[str, Any]


class ApiError(AxonizeError):
    """The API answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ApiUnreachableError(AxonizeError):
    """Nobody answers at the API's address."""


class ApiClient:
    """Asks one collector's query API.

    Args:
        url: where the API listens, with scheme.
        timeout_s: bound on each call.

    Raises:
        ApiError: from every call, when the API answered with an error.
        ApiUnreachableError: from every call, when nobody answered.
    """

    def __init__(self, url: str = DEFAULT_API_URL, *, timeout_s: float = 30.0) -> None:
        if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
            raise ApiUnreachableError(f"API address {url!r} has no scheme; write it as {DEFAULT_API_URL}")
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s

    def requests(self, **filters: str | int | None) -> list[Request]:
        """Return requests, newest first; filters as in the route's query string."""
        return cast("list[Request]", self._json("/api/v1/requests", filters)["requests"])

    def trace(self, trace_id: str) -> Trace:
        """Return one trace by its full id; an unknown one is an ApiError with status 404."""
        return cast("Trace", self._json(f"/api/v1/traces/{urllib.parse.quote(trace_id, safe='')}", {}))

    def batches(self, **filters: str | int | None) -> list[Batch]:
        """Return engine steps, newest first; filters as in the route's query string."""
        return cast("list[Batch]", self._json("/api/v1/batches", filters)["batches"])

    def gpus(self, **filters: str | int | None) -> GpuTree:
        """Return the GPUs, their slices and who holds them; filters as in the route's query string."""
        return cast("GpuTree", self._json("/api/v1/gpus", filters))

    def engines(self, **filters: str | int | None) -> Engines:
        """Return what serving processes do per second; filters as in the route's query string."""
        return cast("Engines", self._json("/api/v1/engines", filters))

    def health(self) -> Health:
        """Return the collector's own account of itself."""
        return cast("Health", self._json("/api/v1/health", {}))

    def ready(self) -> bool:
        """Return whether the collector can store and answer now; False also while nobody listens."""
        try:
            self._get("/readyz")
        except (ApiError, ApiUnreachableError):
            return False
        return True

    def _json(self, path: str, filters: dict[str, str | int | None]) -> dict[str, Any]:
        query = urllib.parse.urlencode({key: value for key, value in filters.items() if value is not None})
        body = self._get(f"{path}?{query}" if query else path)
        try:
            answer = json.loads(body)
        except ValueError as e:
            raise self._stranger() from e
        if not isinstance(answer, dict):
            raise self._stranger()
        return answer

    def _get(self, path: str) -> bytes:
        request = urllib.request.Request(self.url + path, headers={"Accept": "application/json"})  # noqa: S310  scheme checked above
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:  # noqa: S310  same
                return cast("bytes", response.read())
        except urllib.error.HTTPError as e:
            raise ApiError(e.code, _message(e)) from e
        except (urllib.error.URLError, OSError) as e:
            reason = getattr(e, "reason", None) or e
            raise ApiUnreachableError(
                f"no collector answers at {self.url} ({reason}); start one with: axonize collector"
            ) from e

    def _stranger(self) -> ApiUnreachableError:
        return ApiUnreachableError(f"what answers at {self.url} is no Axonize collector; set --api or AXONIZE_API_URL")


def _message(error: urllib.error.HTTPError) -> str:
    """Return the message of the API's error body, or the status line when the body is no such thing."""
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"{error.code} {error.reason}"
