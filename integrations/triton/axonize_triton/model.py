"""``instrument`` and ``attach``: what a model's process does from ``initialize`` to ``finalize``.

Nothing happens before ``initialize``: Triton runs a model's file in another process too, to ask for its configuration,
and that one must emit nothing.
"""

from __future__ import annotations

import functools
import json
import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, overload

from axonize_core.recorder import get_recorder
from axonize_core.settings import get_settings
from axonize_triton.execution import recorded_execute
from axonize_triton.pitfalls import numpy_pitfall
from axonize_triton.senders import senders
from axonize_triton.source import model_source

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["attach", "instrument"]

C = TypeVar("C", bound=type)
logger = logging.getLogger("axonize.triton")
FLUSH_S = 2.0
"""How long ``finalize`` may take to hand over what was recorded."""
_MARK = "_axonize_attached"


@overload
def instrument(model: C) -> C: ...
@overload
def instrument(*, device: str | None = None, service_name: str | None = None) -> Callable[[C], C]: ...


def instrument(model: Any = None, *, device: str | None = None, service_name: str | None = None) -> Any:
    """Record what a ``TritonPythonModel`` executes; a class decorator, with or without arguments.

    The class stays the same object with the same name. Idempotent, also together with ``attach`` and with
    ``axonize triton enable``.

    Args:
        model: the class.
        device: what it really runs on where Triton's instance group does not say, e.g. ``"cuda:0"`` of a KIND_CPU
            model that moves itself to a GPU. ``AXONIZE_TRITON_DEVICE`` wins.
        service_name: ``service.name`` of its spans; by default that of the environment.
    """
    if model is None:
        return functools.partial(instrument, device=device, service_name=service_name)
    original = model.__dict__.get("initialize") or getattr(model, "initialize", None)
    if hasattr(original, _MARK):
        return model

    def initialize(self: Any, args: dict[str, str]) -> Any:
        attach(self, args, device=device, service_name=service_name)
        return None if original is None else original(self, args)

    if original is not None:
        functools.update_wrapper(initialize, original)
    setattr(initialize, _MARK, True)
    model.initialize = initialize
    return model


def attach(model: Any, args: dict[str, str], *, device: str | None = None, service_name: str | None = None) -> None:
    """Record what this model executes; called in its ``initialize`` with what that was given. Never raises.

    Does nothing a second time, and nothing when Axonize is switched off (``AXONIZE_DISABLED``, ``OTEL_SDK_DISABLED``).

    Args:
        model: the instance.
        args: the argument of ``initialize``.
        device: as for ``instrument``.
        service_name: as for ``instrument``.
    """
    try:
        if hasattr(model, _MARK) or get_settings().disabled:
            return
        # As it is while a model's file is imported, it lacks what is patched here.
        pb_utils: Any = import_module("triton_python_backend_utils")
        source, decoupled = model_source(args, device, service_name), _is_decoupled(args)
        open_requests = senders(pb_utils, get_recorder())
        model.execute = recorded_execute(model.execute, pb_utils, source, open_requests, decoupled=decoupled)
        model.finalize = _flushing(getattr(model, "finalize", None))
        setattr(model, _MARK, True)
    except Exception:
        get_recorder().count_error("triton.attach")
        logger.warning("axonize: this model is not recorded", exc_info=True)
        return
    _warn_of_pitfalls()


def _warn_of_pitfalls() -> None:
    try:
        if pitfall := numpy_pitfall():
            logger.error("axonize: %s", pitfall)
    except Exception:  # noqa: BLE001 - the model itself will say more
        get_recorder().count_error("triton.pitfalls")


def _is_decoupled(args: dict[str, str]) -> bool:
    policy = json.loads(args.get("model_config") or "{}").get("model_transaction_policy") or {}
    return bool(policy.get("decoupled"))


def _flushing(original: Callable[[], Any] | None) -> Callable[[], Any]:
    """Return a ``finalize`` that hands over what was recorded, in bounded time."""

    def finalize() -> Any:
        try:
            return None if original is None else original()
        finally:
            try:
                get_recorder().close(FLUSH_S)
            except Exception:  # noqa: BLE001 - the server shuts down
                get_recorder().count_error("triton.finalize")

    return finalize
