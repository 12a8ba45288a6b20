"""Who emits: the engine core, a front end or a worker, as vLLM's own configuration names them.

One engine is several processes. What joins them is ``ai.engine.id``: vLLM's instance id, which the engine core hands
to its workers with its configuration, and the data-parallel rank. API servers beyond the first make an instance id of
their own, so a front end is joined to its engine by the requests, not by this id.
"""

from __future__ import annotations

from typing import Any

from axonize_core.recorder import get_recorder
from axonize_core.settings import get_settings
from axonize_vllm._supported import ENGINE, PROVIDER
from axonize_vllm.plugin import capabilities

__all__ = ["WORKERS", "engine_id", "engine_source", "frontend_source", "worker_source"]

WORKERS = ("workers", 0, None)
"""The device of who drives none itself: the agent finds it through the workers of the same engine."""

_SIZES = (
    ("ai.tensor_parallel.size", "tensor_parallel_size"),
    ("ai.pipeline_parallel.size", "pipeline_parallel_size"),
    ("ai.data_parallel.size", "data_parallel_size"),
)

Attributes = tuple[tuple[str, str], ...]


def engine_id(vllm_config: Any, rank: int | None = None) -> str:
    """Return what the engine core and its workers have in common: ``<instance id>/<data-parallel rank>``.

    ``rank`` is for who knows it better than the configuration, which is that of several engines in a front end.
    """
    known = _data_parallel_rank(vllm_config) if rank is None else rank
    return f"{getattr(vllm_config, 'instance_id', '')}/{known}"


def engine_source(vllm_config: Any, rank: int | None = None) -> int:
    """Return the source of the engine core with this configuration; ``rank`` as in ``engine_id``.

    ``ai.capabilities`` names what is recorded in the calling process, for ``axonize doctor``.
    """
    about = (("ai.role", "engine"), ("ai.capabilities", capabilities()))
    return _source(vllm_config, WORKERS, about, rank)


def frontend_source(vllm_config: Any) -> int:
    """Return the source of the process that talks to this engine's clients."""
    return _source(vllm_config, WORKERS, (("ai.role", "frontend"),))


def worker_source(vllm_config: Any, rank: int, device: tuple[str, int, str | None]) -> int:
    """Return the source of one worker.

    Args:
        vllm_config: the configuration of its engine.
        rank: its rank among the workers of its engine.
        device: type, index and uuid (CUDA only) of what it drives.
    """
    return _source(vllm_config, device, (("ai.role", "worker"), ("ai.rank", str(rank))))


def _source(
    vllm_config: Any, device: tuple[str, int, str | None], attributes: Attributes, rank: int | None = None
) -> int:
    service = get_settings().service_name or f"unknown_service:{ENGINE}"
    about = (("ai.engine.id", engine_id(vllm_config, rank)), *attributes, *_about(vllm_config))
    return get_recorder().source(ENGINE, service, _model(vllm_config), PROVIDER, device, about)


def _model(vllm_config: Any) -> str:
    """Return the first of the names it is served under, else its path."""
    config = getattr(vllm_config, "model_config", None)
    name = getattr(config, "served_model_name", None)
    if isinstance(name, (list, tuple)):
        name = name[0] if name else None
    return str(name or getattr(config, "model", ""))


def _about(vllm_config: Any) -> Attributes:
    """Return what the configuration says of the engine, as text; what a version does not have is left out."""
    parallel = getattr(vllm_config, "parallel_config", None)
    sizes = [(key, getattr(parallel, name, None)) for key, name in _SIZES]
    found: list[tuple[str, Any]] = [(key, size) for key, size in sizes if isinstance(size, int) and size > 1]
    if (getattr(parallel, "data_parallel_size", 1) or 1) > 1 or _data_parallel_rank(vllm_config):
        found.append(("ai.data_parallel.rank", _data_parallel_rank(vllm_config)))
    found.append(("ai.kv_cache.block_size", getattr(getattr(vllm_config, "cache_config", None), "block_size", None)))
    found.append(("ai.engine.version", _version()))
    return tuple((key, str(value)) for key, value in found if value is not None)


def _data_parallel_rank(vllm_config: Any) -> int:
    """Return the rank of this engine; ``data_parallel_rank`` is reset where the ranks are independent of each other."""
    parallel = getattr(vllm_config, "parallel_config", None)
    rank = getattr(parallel, "data_parallel_index", None)
    return int(rank if rank is not None else getattr(parallel, "data_parallel_rank", 0) or 0)


def _version() -> str | None:
    try:
        import vllm  # noqa: PLC0415 - the user's
    except ImportError:
        return None
    return getattr(vllm, "__version__", None)
