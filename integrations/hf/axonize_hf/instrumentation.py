"""``instrument`` and ``uninstrument``: checks, the source, and the swap."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any, TypeVar

from axonize_core.errors import ConfigurationError, IntegrationUnavailableError
from axonize_core.recorder import get_recorder
from axonize_core.settings import get_settings
from axonize_hf._supported import ENGINE, PROVIDER, SUPPORTED, is_supported
from axonize_hf.model import instrument_model, sources, uninstrument_model
from axonize_hf.pipelines import instrument_pipeline, uninstrument_pipeline
from axonize_hf.swap import is_swapped

__all__ = ["instrument", "uninstrument"]

T = TypeVar("T")
logger = logging.getLogger("axonize.hf")


def instrument(target: T, *, model_name: str | None = None, service_name: str | None = None) -> T:
    """Record what a pipeline or model serves, from now on, and return the same object.

    In place and idempotent; outputs stay the same. Returns the object untouched when Axonize is switched off
    (``AXONIZE_DISABLED``, ``OTEL_SDK_DISABLED``), has a setting it cannot use, or does not know this version of
    transformers; the last two are logged.

    Args:
        target: a pipeline of any task, or a PreTrainedModel.
        model_name: the model's name in every span; by default its config's name or path, else its class name.
        service_name: ``service.name`` of its spans; by default that of the environment.

    Raises:
        IntegrationUnavailableError: transformers is missing, or the object is none of these.
    """
    if _switched_off() or not _version_known():
        return target
    kind = _kind(target)
    if is_swapped(target) and model_name is None and service_name is None:
        return target
    model = target.model if kind == "pipeline" else target  # type: ignore[attr-defined]  # a Pipeline has one
    known = sources.get(model) if model_name is None and service_name is None else None
    source = known if known is not None else _source(model, model_name, service_name)
    (instrument_pipeline if kind == "pipeline" else instrument_model)(target, source)
    return target


def uninstrument(target: T) -> T:
    """Undo ``instrument``, on a pipeline for its model too; calls under way still end their records."""
    if is_swapped(target):
        (uninstrument_pipeline if hasattr(target, "postprocess") else uninstrument_model)(target)
    return target


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


def _kind(target: object) -> str:
    from transformers import Pipeline, PreTrainedModel  # noqa: PLC0415 - the user's, checked before

    if isinstance(target, Pipeline):
        return "pipeline"
    if isinstance(target, PreTrainedModel):
        return "model"
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
    if parameter is None or parameter.device.type == "cpu":
        return "cpu", 0, None
    device = parameter.device
    return device.type, device.index or 0, _uuid(device) if device.type == "cuda" else None


def _uuid(device: Any) -> str | None:
    """Return what NVML calls the device, ``GPU-…``; None where torch does not tell."""
    import torch  # noqa: PLC0415 - the user's

    try:
        uuid = str(torch.cuda.get_device_properties(device).uuid)
    except (AttributeError, RuntimeError):
        return None
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
