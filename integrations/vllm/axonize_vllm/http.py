"""When a call came in and when the first of its answer left, at the edge of the API server.

vLLM takes the time of arrival after it has read and checked a call, and that of the first token before it is sent: on a
loopback two milliseconds of what a client waits. The server's app is called for each call with what sends its answer;
both are seen there, on the thread of the event loop, at less than a microsecond for each part of an answer.
"""

from __future__ import annotations

import functools
import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from axonize_core.recorder import get_recorder

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Call", "current", "instrument"]

_MARK = "_axonize_recorded"


class Call:
    """One call of the API; times are perf_counter ns, ``first_ns`` None until something of the answer was sent."""

    __slots__ = ("_over", "_waiting", "arrived_ns", "first_ns", "requests")

    def __init__(self, arrived_ns: int) -> None:
        self.arrived_ns = arrived_ns
        self.first_ns: int | None = None
        self.requests = 0
        """How many requests it became: several prompts, or several answers to one, are a request each."""
        self._waiting: Callable[[], None] | None = None
        self._over = False

    def time_to_first_s(self) -> float | None:
        """Return the time until something of the answer was sent; None too where it may be another request's."""
        return None if self.first_ns is None or self.requests != 1 else (self.first_ns - self.arrived_ns) / 1e9

    def when_begun(self, tell: Callable[[], None]) -> None:
        """Call this once something of the answer was sent, or the call is over without; at once where that is so.

        An answer of one token has ended before anything of it is sent. One call is kept.
        """
        if self._over or self.first_ns is not None or self._waiting is not None:
            tell()
        else:
            self._waiting = tell

    def begin(self, time_ns: int) -> None:
        """Take when something of the answer was sent first."""
        self.first_ns = time_ns
        self._tell()

    def end(self) -> None:
        """Take that nothing more is sent."""
        self._over = True
        self._tell()

    def _tell(self) -> None:
        tell, self._waiting = self._waiting, None
        if tell is not None:
            try:
                tell()
            except Exception:  # noqa: BLE001 - nothing of ours may reach the server
                get_recorder().count_error("vllm.http")


_current: ContextVar[Call | None] = ContextVar("axonize_http_call", default=None)


def current() -> Call | None:
    """Return the call that is being answered; what its task starts knows it as well."""
    return _current.get()


def instrument() -> None:
    """Watch every app of this process, where it has a server at all. Idempotent."""
    fastapi = sys.modules.get("fastapi")
    if fastapi is not None and not hasattr(fastapi.FastAPI.__call__, _MARK):
        fastapi.FastAPI.__call__ = _watched(fastapi.FastAPI.__call__)


def _watched(original: Callable[..., Any]) -> Callable[..., Any]:
    clock = get_recorder().clock

    @functools.wraps(original)
    async def __call__(self: Any, scope: Any, receive: Any, send: Any) -> None:  # noqa: N807 - it is one
        # A server gives dicts (ASGI); what is none is not ours to judge.
        if not isinstance(scope, dict) or scope.get("type") != "http":
            await original(self, scope, receive, send)
            return
        call = Call(clock())

        async def sent(message: Any) -> None:
            if call.first_ns is None and isinstance(message, dict) and message.get("body"):
                call.begin(clock())
            await send(message)

        token = _current.set(call)
        try:
            await original(self, scope, receive, sent)
        finally:
            call.end()
            _current.reset(token)

    setattr(__call__, _MARK, True)
    return __call__
