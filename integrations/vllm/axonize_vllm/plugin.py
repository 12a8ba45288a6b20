"""What vLLM calls in each of its processes: entry point ``axonize`` of the group ``vllm.general_plugins``.

Installed but not asked for, the command line learns one flag and nothing else changes. vLLM does not catch what a
plugin raises, so nothing may leave here.
"""

from __future__ import annotations

import logging
import multiprocessing
import sys
from importlib import import_module

from axonize_vllm import activation

__all__ = ["capabilities", "instrument", "register"]

_INSPECTION = "vllm.model_executor.models.registry"
"""The module that vLLM runs in a process of its own to look at a model's class; nothing is served there."""

_on: dict[str, bool] = {}
logger = logging.getLogger("axonize")


def register() -> None:
    """Teach the command line its flag, and record what this process does if that was asked for. Never raises.

    On vLLM's thread, once in each process before its engine is made; under fork the children inherit what it did.
    """
    try:
        activation.install_flag(instrument)
    except Exception as e:  # noqa: BLE001 - nothing of ours may stop a server
        _failed("the flag --plugin axonize", e)
    if activation.is_enabled():
        instrument()


def instrument() -> None:
    """Record the scheduler, the front end and the workers, each as far as this vLLM has what that needs. Idempotent.

    Without the scheduler, requests are taken from vLLM's own statistics, and from nowhere else: these do not say which
    request of a front end is which. Never raises.
    """
    if _on or _is_inspection():
        return
    _say_unknown_version()
    _on["scheduler"] = _instrumented("scheduler")
    for name in ("frontend" if _on["scheduler"] else "stat_logger", "worker"):
        _on[name] = _instrumented(name)


def capabilities() -> str:
    """Return what is recorded in this process, ``scheduler,frontend,worker`` where nothing is missing."""
    return ",".join(name for name, is_on in _on.items() if is_on)


def _instrumented(name: str) -> bool:
    """Switch one of the modules on and say whether that worked; the reason why not is logged."""
    try:
        # The modules of `worker` are heavy where no worker runs; each worker is looked at when there is one.
        fault = None if name == "worker" else import_module("axonize_vllm._supported").missing(name)
        if fault is None:
            import_module(f"axonize_vllm.{name}").instrument()
            return True
    except Exception as e:  # noqa: BLE001 - nothing of ours may stop an engine
        _failed(name, e)
        return False
    _say_fault(name, fault)
    return False


def _say_fault(name: str, fault: str) -> None:
    instead = {
        "scheduler": "requests come from vLLM's own statistics, steps from its iteration details where they are on",
        "frontend": "finish reasons and latencies are the engine's, not the client's",
        "stat_logger": "nothing is recorded",
    }
    _count(f"vllm.{name}.missing")
    if multiprocessing.parent_process() is None:  # the processes that this one starts would all say the same
        logger.warning("axonize: this vLLM lacks what %s needs (%s): %s", name, fault, instead[name])


def _say_unknown_version() -> None:
    try:
        supported = import_module("axonize_vllm._supported")
        version = str(import_module("vllm").__version__)
        if not supported.is_supported(version) and multiprocessing.parent_process() is None:
            low, high = (".".join(map(str, bound)) for bound in supported.SUPPORTED)
            logger.warning(
                "axonize: vllm %s was not tested (>=%s,<%s is); what it has in the same places is recorded",
                version, low, high,
            )  # fmt: skip
    except Exception as e:  # noqa: BLE001 - a sentence less
        _failed("the version", e)


def _is_inspection() -> bool:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return getattr(spec, "name", None) == _INSPECTION


def _failed(what: str, error: Exception) -> None:
    logger.warning("axonize: %s cannot be switched on: %s: %s", what, type(error).__name__, error)
    _count("vllm.register")


def _count(place: str) -> None:
    try:
        import_module("axonize_core.recorder").get_recorder().count_error(place)
    except Exception:  # noqa: BLE001 - no recorder, nobody to tell
        logger.debug("axonize: %s could not be counted", place)
