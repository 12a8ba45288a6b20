"""What a server knows about a request before the model sees it: its id, its trace, when it arrived."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["RequestContext", "context_at", "current_contexts", "request", "requests", "serve"]

_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class RequestContext:
    """One request as its server sees it; ``arrived_ns`` is ``time.perf_counter_ns()``, unknown is None."""

    request_id: str | None = None
    traceparent: str | None = None
    arrived_ns: int | None = None
    attributes: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("request_id", "traceparent"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else _text(value))

    def pairs(self) -> tuple[tuple[str, Any], ...] | None:
        """Return the attributes as a record carries them; values that are no OTel type become text."""
        if not self.attributes:
            return None
        return tuple((_text(key), _value(value)) for key, value in self.attributes.items())


Contexts = tuple[RequestContext, ...]
_UNKNOWN = RequestContext()
_contexts: ContextVar[RequestContext | Contexts] = ContextVar("axonize_hf_contexts", default=_UNKNOWN)


@contextmanager
def request(
    *,
    request_id: str | None = None,
    traceparent: str | None = None,
    arrived_ns: int | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Iterator[RequestContext]:
    """Say whose request the calls inside serve; every item or row of a batch gets the same context.

    The context belongs to the calling thread or asyncio task; ``contextvars.copy_context().run`` carries it on.
    """
    context = RequestContext(request_id, traceparent, arrived_ns, attributes)
    token = _contexts.set(context)
    try:
        yield context
    finally:
        _contexts.reset(token)


@contextmanager
def requests(contexts: Sequence[RequestContext]) -> Iterator[Contexts]:
    """Say whose requests one call with several inputs serves: one context per item or row, in their order.

    Items beyond the last context have none.
    """
    given = tuple(contexts)
    token = _contexts.set(given)
    try:
        yield given
    finally:
        _contexts.reset(token)


@contextmanager
def serve(context: RequestContext | None) -> Iterator[None]:
    """Let what runs inside (another pipeline, say) serve one item's request; None changes nothing."""
    token = None if context is None else _contexts.set(context)
    try:
        yield
    finally:
        if token is not None:
            _contexts.reset(token)


def current_contexts() -> RequestContext | Contexts:
    """Return what ``request`` or ``requests`` said for the running call."""
    return _contexts.get()


def context_at(contexts: RequestContext | Contexts, index: int) -> RequestContext:
    """Return the context of the item or row ``index``."""
    if isinstance(contexts, RequestContext):
        return contexts
    return contexts[index] if index < len(contexts) else _UNKNOWN


def _text(value: object) -> str:
    # A lone surrogate (a header decoded with surrogateescape) cannot be encoded, and would cost the whole frame.
    return str(value).encode("utf-8", "replace").decode()


def _value(value: object) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral) and int(value) in _INT64:
        return int(value)
    if isinstance(value, Real) and not isinstance(value, Integral):
        return float(value)
    if isinstance(value, (list, tuple)):
        return tuple(_value(item) for item in value)
    return _text(value)
