"""The query API: the routes of ARCHITECTURE.md §9 over HTTP.

Handlers run on the server's event loop; whatever asks the store runs on a few threads of our own, because each
thread that does holds a connection to ClickHouse.
"""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from axonize_core.errors import StoreError
from axonize_server import query, query_energy, query_gpus
from axonize_server.registry.layers import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from axonize_server.health import Health
    from axonize_server.registry.base import Registry
    from axonize_server.store.clickhouse import ClickHouseStore

__all__ = ["ApiServer", "make_app"]

_THREADS = 4
_READY_S = 5.0
_MOST = 1000
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")
_SINCE = re.compile(r"(\d{1,9})([smhd])")
_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 503: "store_unavailable"}


class ApiServer:
    """The API's HTTP server, on a thread of its own."""

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        """Listen.

        Raises:
            OSError: The address is taken or not ours.
        """
        self._socket = socket.create_server((host, port))
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=5)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="axonize-api", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what is under way, and end."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()


def make_app(store: ClickHouseStore, registry: Registry, health: Health, tenant: str) -> Starlette:
    """Give the application that answers for one tenant."""
    handlers = _Handlers(store, registry, health, tenant)
    routes = {
        "/api/v1/requests": handlers.requests,
        "/api/v1/traces/{trace_id}": handlers.trace,
        "/api/v1/batches": handlers.batches,
        "/api/v1/gpus": handlers.gpus,
        "/api/v1/gpus/minutes": handlers.gpu_minutes,
        "/api/v1/energy": handlers.energy,
        "/api/v1/engines": handlers.engines,
        "/api/v1/health": handlers.health,
        "/healthz": handlers.alive,
        "/readyz": handlers.ready,
        "/metrics": handlers.metrics,
    }
    return Starlette(
        routes=[Route(path, endpoint) for path, endpoint in routes.items()],
        exception_handlers={HTTPException: _refused, StoreError: _unavailable},
    )


class _Handlers:
    def __init__(self, store: ClickHouseStore, registry: Registry, health: Health, tenant: str) -> None:
        self._store = store
        self._registry = registry
        self._health = health
        self._tenant = tenant
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="axonize-query")
        self._looking: asyncio.Future[str | None] | None = None

    async def requests(self, request: Request) -> Response:
        asked = _Asked(request, "limit", "since", "service", "model", "status")
        found = await self._ask(
            query.requests,
            limit=asked.limit(),
            since_s=asked.since_s(),
            service=asked.text("service"),
            model=asked.text("model"),
            status=asked.one_of("status", ("ok", "error")),
        )
        return JSONResponse({"requests": found})

    async def trace(self, request: Request) -> Response:
        trace_id = request.path_params["trace_id"].lower()
        if not re.fullmatch(r"[0-9a-f]{32}", trace_id):
            raise HTTPException(400, f"a trace id is 32 hexadecimal digits, not {trace_id!r}")
        found = await self._ask(query.trace, trace_id=trace_id)
        if found is None:
            raise HTTPException(404, f"no trace {trace_id!r}")
        return JSONResponse(found)

    async def batches(self, request: Request) -> Response:
        asked = _Asked(request, "limit", "since", "service", "instance_id", "request_seq")
        found = await self._ask(
            query.batches,
            limit=asked.limit(),
            since_s=asked.since_s(),
            service=asked.text("service"),
            instance_id=asked.text("instance_id"),
            request_seq=asked.number("request_seq", None, least=0, most=2**63 - 1),
        )
        return JSONResponse({"batches": found})

    async def gpus(self, request: Request) -> Response:
        asked = _Asked(request, "at", "compute_resource", "node")
        found = await self._run(
            partial(
                query_gpus.gpus,
                self._registry,
                self._store,
                tenant=self._tenant,
                at_ns=asked.moment_ns("at"),
                compute_resource=asked.text("compute_resource"),
                node=asked.text("node"),
            )
        )
        return JSONResponse(found)

    async def gpu_minutes(self, request: Request) -> Response:
        asked = _Asked(request, "compute_resource", "since")
        resource = asked.text("compute_resource")
        if not resource:
            raise HTTPException(400, "compute_resource is missing: the uuid of a GPU or slice, see /api/v1/gpus")
        since_ns = max(0, time.time_ns() - int((asked.since_s("since", "24h") or 1.0) * 10**9))
        found = await self._ask(query_gpus.minutes, compute_resource=resource, since_ns=since_ns)
        return JSONResponse({"compute_resource": resource, "minutes": found})

    async def energy(self, request: Request) -> Response:
        until_ns = time.time_ns()
        since_ns = until_ns - int((_Asked(request, "since").since_s("since", "15m") or 1.0) * 10**9)
        found = await self._ask(query_energy.energies, since_ns=max(0, since_ns), until_ns=until_ns)
        return JSONResponse({"since": rfc3339(max(0, since_ns)), "until": rfc3339(until_ns), "gpus": found})

    async def engines(self, request: Request) -> Response:
        window_s = _Asked(request, "window").since_s("window", "60s") or 1.0
        found = await self._ask(query_gpus.engines, window_s=window_s)
        return JSONResponse({"window_s": window_s, "engines": found})

    async def health(self, _: Request) -> Response:
        return JSONResponse(await self._run(self._health.report))

    async def alive(self, _: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def ready(self, _: Request) -> Response:
        """Say so within seconds: a store that takes connections and then is silent is asked once, not by each probe."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._run(self._health.not_ready))
        try:
            missing = await asyncio.wait_for(asyncio.shield(self._looking), _READY_S)
        except asyncio.TimeoutError:
            missing = f"the store does not answer within {_READY_S:g} s"
        return PlainTextResponse(f"{missing or 'ready'}\n", 503 if missing else 200)

    async def metrics(self, _: Request) -> Response:
        text = await self._run(self._health.prometheus)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    async def _ask(self, question: Callable[..., Any], **parameters: Any) -> Any:
        return await self._run(partial(question, self._store, tenant=self._tenant, **parameters))

    async def _run(self, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


class _Asked:
    """The query string of a request, checked; what it does not know it refuses, and so does every method."""

    def __init__(self, request: Request, *known: str) -> None:
        self._values = dict(request.query_params)
        if unknown := sorted(set(self._values) - set(known)):
            raise HTTPException(400, f"unknown parameters {unknown!r}; there are {', '.join(known)}")

    def text(self, name: str) -> str | None:
        return self._values.get(name) or None

    def one_of(self, name: str, allowed: tuple[str, ...]) -> str | None:
        value = self.text(name)
        if value is not None and value not in allowed:
            raise HTTPException(400, f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        return value

    def limit(self) -> int:
        return self.number("limit", 50, least=1, most=_MOST) or 50

    def number(self, name: str, default: int | None, *, least: int, most: int) -> int | None:
        value = self.text(name)
        if value is None:
            return default
        if not re.fullmatch(r"\d{1,19}", value, re.ASCII) or not least <= int(value) <= most:
            raise HTTPException(400, f"{name} must be a number from {least} to {most}, not {value!r}")
        return int(value)

    def since_s(self, name: str = "since", default: str = "15m") -> float:
        value = self.text(name) or default
        if not (match := _SINCE.fullmatch(value)):
            raise HTTPException(400, f"{name} must be a number with s, m, h or d, like 15m, not {value!r}")
        return int(match[1]) * _UNITS_S[match[2]]

    def moment_ns(self, name: str) -> int | None:
        """Give a time in ns since the epoch: RFC 3339 with its zone, or how long ago."""
        value = self.text(name)
        if value is None:
            return None
        if _SINCE.fullmatch(value):
            return max(0, time.time_ns() - int(self.since_s(name)) * 10**9)
        match = _MOMENT.fullmatch(value)
        try:
            second = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00")) if match else None
        except ValueError:
            second = None
        if match is None or second is None:
            raise HTTPException(400, f"{name} must be like 2026-03-01T10:20:00Z, or 15m for so long ago, not {value!r}")
        return int(second.timestamp()) * 10**9 + int((match[2] or "").ljust(9, "0"))


async def _refused(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return _error(status, error.detail if isinstance(error, HTTPException) else "")


async def _unavailable(_: Request, error: Exception) -> Response:
    return _error(503, str(error))


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": {"code": _CODES.get(status, "error"), "message": message}}, status)
