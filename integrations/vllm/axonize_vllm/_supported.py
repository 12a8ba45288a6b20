"""What this integration supports, as data: versions of vLLM, and the places in it that each capability needs."""

from __future__ import annotations

import dis
import inspect
import re
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "CAPABILITIES",
    "ENGINE",
    "PROVIDER",
    "SUPPORTED",
    "TESTED",
    "Capability",
    "Point",
    "added_later",
    "has",
    "hindrances",
    "is_supported",
    "missing",
]

ENGINE = "vllm"
PROVIDER = "vllm"

SUPPORTED = ((0, 18), (0, 34))
"""Versions of vLLM: from the first, up to but without the second (major, minor)."""


TESTED = ("0.18.1", "0.25.1", "0.32.0", "0.33.0")
"""Versions whose sources a test holds the points against; the last is the newest. 0.32.0 is also run."""


class Point(NamedTuple):
    """A place in vLLM that we call, wrap or read: ``Class.name`` in a module.

    ``parameters`` are the leading ones of a method, in order and without self, more may follow; None is something read:
    a field, a property, or what ``__init__`` assigns. A point is there from ``since`` up to but without ``before``
    (None: still); where that changed between two of ``TESTED``, the later one stands.
    """

    module: str
    path: str
    parameters: tuple[str, ...] | None = None
    since: tuple[int, int] = SUPPORTED[0]
    before: tuple[int, int] | None = None


class Capability(NamedTuple):
    """What the integration can do where all its points are there: from ``since`` up to but without ``before``."""

    name: str
    meaning: str
    points: tuple[Point, ...]
    since: tuple[int, int] = SUPPORTED[0]
    before: tuple[int, int] | None = None


def _read(module: str, owner: str, names: str) -> tuple[Point, ...]:
    return tuple(Point(module, f"{owner}.{name}") for name in names.split())


def _call(module: str, path: str, parameters: str = "") -> Point:
    return Point(module, path, tuple(parameters.split()))


_ARG_UTILS = "vllm.engine.arg_utils"
_SCHEDULER = "vllm.v1.core.sched.scheduler"
_OUTPUT = "vllm.v1.core.sched.output"
_ENGINE = "vllm.v1.engine"
_ASYNC_LLM = "vllm.v1.engine.async_llm"
_OUTPUT_PROCESSOR = "vllm.v1.engine.output_processor"
_STATS = "vllm.v1.metrics.stats"
_LOGGERS = "vllm.v1.metrics.loggers"
_WORKER_BASE = "vllm.v1.worker.worker_base"
_GPU_WORKER = "vllm.v1.worker.gpu_worker"

CAPABILITIES = (
    Capability(
        "activation",
        "the flag --plugin axonize",
        (
            _call("vllm.utils.argparse_utils", "FlexibleArgumentParser.parse_args", "args namespace"),
            _call(_ARG_UTILS, "EngineArgs.add_cli_args", "parser"),
            _call(_ARG_UTILS, "AsyncEngineArgs.add_cli_args", "parser async_args_only"),
        ),
    ),
    Capability(
        "source",
        "which engine, model and rank a record is of",
        (
            *_read("vllm.config.vllm", "VllmConfig", "instance_id model_config parallel_config"),
            *_read("vllm.config.model", "ModelConfig", "served_model_name model"),
            *_read("vllm.config.parallel", "ParallelConfig", "data_parallel_rank"),
        ),
    ),
    Capability(
        "scheduler",
        "every request and step, from the scheduler",
        (
            _call("vllm.config.scheduler", "SchedulerConfig.get_scheduler_cls"),
            _call(_SCHEDULER, "Scheduler.add_request", "request"),
            _call(_SCHEDULER, "Scheduler.schedule"),
            _call(_SCHEDULER, "Scheduler.update_from_output", "scheduler_output model_runner_output"),
            _call(_SCHEDULER, "Scheduler.finish_requests", "request_ids finished_status"),
            # The waiting are in two queues, the second of another name in each version; this adds up both, as we do.
            _call(_SCHEDULER, "Scheduler.get_request_counts"),
            *_read(_SCHEDULER, "Scheduler", "vllm_config requests running waiting finished_req_ids"),
            *_read(_OUTPUT, "SchedulerOutput", "num_scheduled_tokens total_num_scheduled_tokens scheduled_new_reqs"),
            *_read(_OUTPUT, "SchedulerOutput", "scheduled_cached_reqs scheduled_spec_decode_tokens preempted_req_ids"),
            *_read(_OUTPUT, "CachedRequestData", "req_ids num_computed_tokens"),
            *_read(_OUTPUT, "NewRequestData", "req_id num_computed_tokens"),
            *_read("vllm.v1.request", "Request", "request_id client_index arrival_time status trace_headers"),
            *_read("vllm.v1.request", "Request", "num_prompt_tokens num_output_tokens num_computed_tokens"),
            *_read("vllm.v1.request", "Request", "num_preemptions sampling_params pooling_params lora_request"),
            *_read(_ENGINE, "EngineCoreOutputs", "outputs"),
            *_read(_ENGINE, "EngineCoreOutput", "request_id new_token_ids finish_reason"),
        ),
    ),
    Capability(
        "kv_cache_usage",
        "how full the KV cache is at each step",
        (
            # usage and block_pool.get_usage() are the same division: 1 - free / (blocks - 1); cheap, no list is walked.
            *_read(_SCHEDULER, "Scheduler", "kv_cache_manager"),
            *_read("vllm.v1.core.kv_cache_manager", "KVCacheManager", "usage block_pool"),
            *_read("vllm.v1.core.block_pool", "BlockPool", "num_gpu_blocks free_block_queue"),
            *_read("vllm.v1.core.kv_cache_utils", "FreeKVCacheBlockQueue", "num_free_blocks"),
        ),
    ),
    Capability(
        "frontend",
        "the answer as its client saw it",
        (
            _call(_OUTPUT_PROCESSOR, "OutputProcessor.add_request", "request prompt parent_req request_index queue"),
            _call(
                _OUTPUT_PROCESSOR,
                "OutputProcessor.process_outputs",
                "engine_core_outputs engine_core_timestamp iteration_stats",
            ),
            _call(_OUTPUT_PROCESSOR, "OutputProcessor.abort_requests", "request_ids internal"),
            _call(_OUTPUT_PROCESSOR, "OutputProcessor.propagate_error", "e"),
            *_read(_OUTPUT_PROCESSOR, "OutputProcessor", "request_states"),
            *_read(_OUTPUT_PROCESSOR, "OutputProcessorOutput", "reqs_to_abort"),
            *_read(
                _OUTPUT_PROCESSOR, "RequestState", "stats prompt_len parent_req request_index detokenizer output_kind"
            ),
            *_read(_ASYNC_LLM, "AsyncLLM", "output_processor vllm_config"),
            *_read("vllm.v1.engine.llm_engine", "LLMEngine", "output_processor vllm_config"),
            *_read(_STATS, "IterationStats", "finished_requests"),
            *_read(_STATS, "FinishedRequestStats", "finish_reason e2e_latency"),
            *_read(_STATS, "RequestStateStats", "arrival_time first_token_latency num_generation_tokens"),
            *_read(_ENGINE, "EngineCoreRequest", "request_id external_req_id arrival_time client_index"),
            *_read(_ENGINE, "EngineCoreOutput", "request_id new_token_ids finish_reason"),
        ),
    ),
    Capability(
        "trace_headers",
        "the caller's traceparent, while vLLM's own tracing is off",
        (
            # Up to 0.25 the serving classes ask the first before they read the headers; in 0.32 they always read them,
            # and the second drops what it is given (`otlp_traces_endpoint is None`).
            _call(_ASYNC_LLM, "AsyncLLM.is_tracing_enabled"),
            _call(
                _ASYNC_LLM,
                "AsyncLLM.add_request",
                "request_id prompt params arrival_time lora_request tokenization_kwargs trace_headers",
            ),
            *_read(_ENGINE, "EngineCoreRequest", "trace_headers"),
        ),
    ),
    Capability(
        "stat_logger",
        "counts and latencies of finished requests, from vLLM's own statistics",
        (
            _call(_LOGGERS, "StatLoggerManager.__init__", "vllm_config"),
            _call(_LOGGERS, "StatLoggerBase.record", "scheduler_stats iteration_stats mm_cache_stats engine_idx"),
            _call(_LOGGERS, "StatLoggerBase.log_engine_initialized"),
            *_read(_STATS, "SchedulerStats", "num_running_reqs num_waiting_reqs kv_cache_usage"),
            *_read(_STATS, "IterationStats", "finished_requests iteration_timestamp num_generation_tokens"),
            *_read(_STATS, "FinishedRequestStats", "finish_reason e2e_latency num_prompt_tokens num_generation_tokens"),
            *_read(_STATS, "FinishedRequestStats", "queued_time prefill_time inference_time decode_time"),
            *_read(_STATS, "FinishedRequestStats", "mean_time_per_output_token num_cached_tokens"),
        ),
    ),
    Capability(
        "finished_request_ids",
        "ids of finished requests in vLLM's own statistics",
        _read(_STATS, "FinishedRequestStats", "request_id"),
        since=(0, 25),
    ),
    Capability(
        "iteration_details",
        "counts of each step in vLLM's own statistics",
        (
            *_read(_STATS, "SchedulerStats", "iteration_details"),
            *_read(_STATS, "SchedulerIterationDetails", "iteration_index elapsed_ms is_dummy num_ctx_requests"),
            *_read(_STATS, "SchedulerIterationDetails", "num_ctx_tokens num_generation_requests num_generation_tokens"),
            *_read("vllm.config.observability", "ObservabilityConfig", "enable_logging_iteration_details"),
        ),
        since=(0, 32),
    ),
    Capability(
        "worker",
        "which device a worker drives",
        (
            _call(_WORKER_BASE, "WorkerWrapperBase.init_device"),
            *_read(_WORKER_BASE, "WorkerBase", "rank device vllm_config"),
        ),
    ),
    Capability(
        "device_time",
        "what each step takes on the GPU",
        (
            _call(_GPU_WORKER, "Worker.execute_model", "scheduler_output"),
            _call(_GPU_WORKER, "Worker.sample_tokens", "grammar_output"),
        ),
    ),
)
"""By the sources of vLLM; tests/integration/test_vllm_signatures.py holds them against every version of ``TESTED``."""


def is_supported(version: str) -> bool:
    """Say whether a version string such as ``"0.32.0+cpu"`` lies in the supported range."""
    found = _parsed(version)
    return found is not None and SUPPORTED[0] <= found < SUPPORTED[1]


def has(capability: str, version: str) -> bool:
    """Say whether a version can do what a capability names, by the table.

    Raises:
        KeyError: there is no such capability.
    """
    found = _parsed(version)
    return found is not None and _is_within(_NAMED[capability], found)


def added_later(version: str) -> list[str]:
    """Return what a version cannot do yet, each with the version that can, for ``axonize doctor``."""
    found = _parsed(version)
    later = [c for c in CAPABILITIES if found is not None and found < c.since]
    return [f"{c.meaning} ({c.since[0]}.{c.since[1]})" for c in later]


def hindrances(env: Mapping[str, str]) -> list[str]:
    """Say what in the environment keeps vLLM from loading this plugin, and what to do, for ``axonize doctor``."""
    allowed = env.get("VLLM_PLUGINS")
    if allowed is None or "axonize" in allowed.split(","):
        return []
    what = "vLLM does not load axonize, and takes --plugin for an unknown argument"
    return [f"VLLM_PLUGINS={allowed!r}: {what}; add axonize to it, or use axonize run -- vllm serve …"]


def missing(capability: str) -> str | None:
    """Say in one line what a capability lacks in the vLLM of this process, None where all is there; never raises.

    Imports the modules of its points: call it where the process has imported them, or is about to. It takes 7 ms then,
    for the whole table. A method that was wrapped is looked at through ``__wrapped__``.
    """
    try:
        return next(_absences(_NAMED[capability], str(import_module("vllm").__version__)), None)
    except Exception as e:  # noqa: BLE001 - whatever an unknown vLLM does, it is an answer
        return f"{capability}: {type(e).__name__}: {e}"


def _absences(capability: Capability, version: str) -> Iterator[str]:
    found = _parsed(version)
    if found is None or not is_supported(version):  # a build from source calls itself 0.1.dev…: take it for the newest
        found = _parsed(TESTED[-1]) or SUPPORTED[0]
    if not _is_within(capability, found):
        yield f"{capability.meaning}: not in vLLM {version}"
    for point in capability.points:
        if _is_within(point, found):
            fault = _fault(point)
            if fault:
                yield f"{point.module}: {fault}"


def _fault(point: Point) -> str | None:
    """Return what is wrong with a point in this process, None where it is as the table says."""
    owner_name, _, name = point.path.partition(".")
    try:
        owner = getattr(import_module(point.module), owner_name, None)
    except ImportError as e:
        return f"cannot be imported ({e})"
    if owner is None:
        return f"no {owner_name}"
    if point.parameters is None:
        return None if _is_readable(owner, name) else f"no {point.path}"
    found = _parameters(owner, name)
    if found is None:
        return f"no {point.path}()"
    if found[: len(point.parameters)] != point.parameters:
        return f"{point.path}({', '.join(found)}) instead of ({', '.join(point.parameters)})"
    return None


def _is_readable(owner: Any, name: str) -> bool:
    """Say whether instances have an attribute: of the class, a declared field, or one that ``__init__`` assigns."""
    for cls in inspect.getmro(owner):
        init = inspect.unwrap(vars(cls).get("__init__", object.__init__))
        code = getattr(init, "__code__", None)
        if name in vars(cls) or name in vars(cls).get("__annotations__", ()) or (code and name in _assigned(code)):
            return True
    return name in getattr(owner, "__dataclass_fields__", ())


@lru_cache(maxsize=8)  # one class is asked for several attributes in a row
def _assigned(code: Any) -> set[str]:
    return {found.argval for found in dis.get_instructions(code) if found.opname == "STORE_ATTR"}


def _parameters(owner: Any, name: str) -> tuple[str, ...] | None:
    """Return the positional parameters of a method without self, through wrappers; None where there is none."""
    declared = inspect.getattr_static(owner, name, None)
    code = getattr(inspect.unwrap(getattr(owner, name, None)), "__code__", None)  # type: ignore[arg-type]
    if code is None:
        return None
    names: tuple[str, ...] = code.co_varnames[: code.co_argcount]
    return names if isinstance(declared, staticmethod) else names[1:]


def _is_within(entry: Point | Capability, version: tuple[int, int]) -> bool:
    return entry.since <= version and (entry.before is None or version < entry.before)


def _parsed(version: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", version)
    return None if found is None else (int(found[1]), int(found[2]))


_NAMED = {capability.name: capability for capability in CAPABILITIES}
