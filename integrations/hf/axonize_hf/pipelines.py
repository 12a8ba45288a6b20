"""What the class swap overrides on a pipeline: its call, and its stages while a call runs."""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from axonize_hf.model import instrument_model, sources, uninstrument_model
from axonize_hf.run import current_run, guarded
from axonize_hf.session import Session, Stage
from axonize_hf.swap import swap, unswap
from axonize_hf.tasks import task_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["instrument_pipeline", "uninstrument_pipeline"]

STAGES = ("preprocess", "forward", "postprocess")
_session: ContextVar[Session | None] = ContextVar("axonize_hf_session", default=None)


def instrument_pipeline(pipe: Any, source: int) -> None:
    """Swap the class of a pipeline, and of its model where the task generates."""
    if task_of(pipe).generates:
        instrument_model(pipe.model, source)
    sources[pipe] = source
    swap(pipe, _overrides)


def uninstrument_pipeline(pipe: Any) -> None:
    """Undo ``instrument_pipeline``."""
    unswap(pipe)
    sources.pop(pipe, None)
    uninstrument_model(pipe.model)


def _overrides(original: type[Any]) -> dict[str, Any]:
    call_original = original.__call__

    @functools.wraps(call_original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807 - it is that method
        return _record_call(self, call_original.__get__(self), args, kwargs)

    return {"__call__": __call__, **{name: _StageOf(name, getattr(original, name)) for name in STAGES}}


def _record_call(pipe: Any, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    session = _open_session(pipe, kwargs)
    if session is None:
        return original(*args, **kwargs)
    token = _session.set(session)
    try:
        result = original(*args, **kwargs)
    except BaseException as error:
        session.fail(error)
        raise
    finally:
        # A generator's or data set's items come after the call, each when it is asked for.
        session.called_ns = None
        _session.reset(token)
    return result


@guarded("hf.pipeline.open")
def _open_session(pipe: Any, kwargs: dict[str, Any]) -> Session | None:
    source = sources.get(pipe)
    # Stages replaced on the instance would hide from us where an item ends.
    if source is None or current_run.get() is not None or not vars(pipe).keys().isdisjoint(STAGES):
        return None
    batch_size = kwargs.get("batch_size") or getattr(pipe, "_batch_size", None)
    return Session(pipe, source, batch_size or 1)


class _StageOf:
    """A stage's method: the original, but within a call of the pipeline bound to its session."""

    def __init__(self, name: str, original: Any) -> None:
        self._name = name
        self._original = original

    def __get__(self, pipe: Any, owner: type) -> Any:
        bound = self._original.__get__(pipe, owner)
        session = _session.get()
        if pipe is None or session is None or session.pipe is not pipe:
            return bound
        return Stage(session, self._name, bound)
