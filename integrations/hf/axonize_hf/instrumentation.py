"""``instrument`` and ``uninstrument``: checks, the source, and the swap."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from axonize_core.errors import ConfigurationError, IntegrationUnavailableError
from axonize_core.gpu.torch_device import torch_device
from axonize_core.recorder import get_recorder
from axonize_core.settings import get_settings
from axonize_hf._supported import ENGINE, PROVIDER, SUPPORTED, is_supported
from axonize_hf.continuous import instrument_manager, managers, uninstrument_manager
from axonize_hf.model import instrument_model, sources, uninstrument_model
from axonize_hf.pipelines import instrument_pipeline, uninstrument_pipeline
from axonize_hf.swap import is_swapped
from axonize_hf.wrappers import unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["instrument", "uninstrument"]

T = TypeVar("T")
logger = logging.getLogger("axonize.hf")


def instrument(target: T, *, model_name: str | None = None, service_name: str | None = None) -> T:
    """Record what a pipeline or model serves, from now on, and return the same object.

    In place and idempotent; outputs stay the same. Returns the object untouched when Axonize is switched off
    (``AXONIZE_DISABLED``, ``OTEL_SDK_DISABLED``), has a setting it cannot use, or does not know this version of
    transformers; the last two are logged.

    Args:
        target: a pipeline of any task, a PreTrainedModel, a wrapper around one (PEFT, ``torch.compile``, DataParallel),
            or a manager for continuous batching.
        model_name: the model's name in every span; by default its config's name or path, else its class name.
        service_name: ``service.name`` of its spans; by default that of the environment.

    Raises:
        IntegrationUnavailableError: transformers is missing, or the object is none of these.
    """
    if _switched_off() or not _version_known():
        return target
    how = _how(target)
    if _is_instrumented(target) and model_name is None and service_name is None:
        return target
    model = _model(target)
    known = sources.get(model) if model_name is None and service_name is None else None
    how(target, _source(model, model_name, service_name) if known is None else known)
    return target


def uninstrument(target: T) -> T:
    """Undo ``instrument``, on a pipeline for its model too; calls under way still end their records."""
    if _is_manager(target):
        uninstrument_manager(target)
    elif _is_instrumented(target):
        (uninstrument_pipeline if hasattr(target, "postprocess") else uninstrument_model)(target)
    return target


def _is_instrumented(target: Any) -> bool:
    """Say whether the object itself, or the model inside a wrapper, is recorded."""
    return target in managers if _is_manager(target) else is_swapped(target) or is_swapped(unwrapped(target))


def _is_manager(target: object) -> bool:
    # Where the class is imported from differs by version; the first ones have none.
    return any(cls.__name__ == "ContinuousBatchingManager" for cls in type(target).__mro__)


def _model(target: Any) -> Any:
    """Return the model of a pipeline, of a manager or inside a wrapper."""
    holds = _is_manager(target) or hasattr(target, "postprocess")
    return unwrapped(target.model if holds else target)


def _switched_off() -> bool:
    """Say whether nothing is to be recorded; a setting that cannot be used is said, and stops no server."""
    try:
        return get_settings().disabled
    except ConfigurationError as e:
        logger.error("nothing will be recorded: %s", e)  # noqa: TRY400 - the sentence is enough
        return True


def _version_known() -> bool:
    try:
        import transformers  # noqa: PLC0415 - the user's
    except ImportError as e:
        raise IntegrationUnavailableError(
            "transformers is not installed; install it beside Axonize: pip install transformers torch"
        ) from e
    return _check(transformers.__version__)


@lru_cache
def _check(version: str) -> bool:
    """Say whether we know this version; warns once for one that we do not."""
    if is_supported(version):
        return True
    (low, high) = (".".join(map(str, bound)) for bound in SUPPORTED)
    logger.warning(
        "transformers %s is not supported (>=%s,<%s): nothing will be recorded; upgrade axonize", version, low, high
    )
    return False


def _how(target: object) -> Callable[[Any, int], None]:
    from transformers import Pipeline, PreTrainedModel  # noqa: PLC0415 - the user's, checked before

    if isinstance(target, Pipeline):
        return instrument_pipeline
    if _is_manager(target):
        return instrument_manager
    if isinstance(unwrapped(target), PreTrainedModel):
        return instrument_model
    raise IntegrationUnavailableError(
        f"{type(target).__name__!r} object is neither a transformers Pipeline nor a PreTrainedModel; "
        "pass one of these to axonize_hf.instrument()"
    )


def _source(model: Any, model_name: str | None, service_name: str | None) -> int:
    name = model_name or getattr(model.config, "_name_or_path", "") or type(model).__name__
    service = service_name or get_settings().service_name or f"unknown_service:{ENGINE}"
    return get_recorder().source(ENGINE, service, str(name), PROVIDER, _device(model), None)


def _device(model: Any) -> tuple[str, int, str | None]:
    """Return type, index and uuid (CUDA only) of the device of the model's first parameter."""
    parameter = next(model.parameters(), None)
    return ("cpu", 0, None) if parameter is None else torch_device(parameter.device)
