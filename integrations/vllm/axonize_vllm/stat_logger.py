"""The fall-back where the scheduler cannot be recorded: requests from vLLM's own statistics of those that finished.

Runs in the front end, in the loop that handles outputs. What these statistics lack is lacking here: requests that were
aborted, their traces, who shared a step, the time of each token. It is not an entry point of
``vllm.stat_logger_plugins``: any class there switches vLLM's statistics on, asked for or not
(``AsyncLLM.__init__``, 0.18 to 0.33).
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from axonize_core.attributes import CACHED_TOKENS
from axonize_core.frames import Kind
from axonize_core.recorder import get_recorder
from axonize_vllm.requests import operation
from axonize_vllm.source import engine_source

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Statistics", "instrument"]

_CAPABILITY = (("ai.capability", "stat_logger"),)


def instrument() -> None:
    """Add our logger to those of every engine that this process makes from now on. Idempotent.

    A server takes its statistics then even under ``--disable-log-stats``, as with any logger that is added; an engine
    without a server (``LLM``) needs ``disable_log_stats=False``.

    Raises:
        AttributeError: this vLLM keeps its loggers elsewhere; nothing was changed.
    """
    from vllm.v1.engine import async_llm  # noqa: PLC0415 - the user's
    from vllm.v1.metrics import loggers  # noqa: PLC0415 - same

    make_manager, find_factories = loggers.StatLoggerManager.__init__, async_llm.load_stat_logger_plugin_factories
    if not hasattr(make_manager, "axonize_original"):
        logger_class = _logger_class(loggers.StatLoggerBase)
        loggers.StatLoggerManager.__init__ = _adding(make_manager, logger_class)
        async_llm.load_stat_logger_plugin_factories = lambda: [*find_factories(), logger_class]


def _adding(original: Callable[..., None], logger_class: type) -> Callable[..., None]:
    """Return ``StatLoggerManager.__init__`` that has our logger among its own."""

    @functools.wraps(original)
    def init(self: Any, *args: Any, custom_stat_loggers: Any = None, **kwargs: Any) -> None:
        theirs = [factory for factory in custom_stat_loggers or () if factory is not logger_class]
        original(self, *args, custom_stat_loggers=[*theirs, logger_class], **kwargs)

    init.axonize_original = original  # type: ignore[attr-defined]
    return init


def _logger_class(base: type) -> type:
    """Return the class of our loggers, one for each engine; vLLM asks for one of its own kind."""

    class AxonizeStatLogger(base):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            self._statistics: Statistics | None = None
            try:
                self._statistics = Statistics(vllm_config, engine_index)
            except Exception:  # noqa: BLE001 - nothing of ours may stop an engine
                get_recorder().count_error("vllm.stat_logger")

        def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
            if self._statistics is None:
                return
            try:
                self._statistics.record(scheduler_stats, iteration_stats)
            except Exception:  # noqa: BLE001 - same
                get_recorder().count_error("vllm.stat_logger")

        def log_engine_initialized(self) -> None:
            pass

    return AxonizeStatLogger


class Statistics:
    """The statistics of one engine, as records."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self._recorder = get_recorder()
        self._source = engine_source(vllm_config, rank=engine_index or None)
        self._pooling = getattr(getattr(vllm_config, "model_config", None), "runner_type", "generate") == "pooling"
        self._recorder.start()

    def record(self, scheduler_stats: Any, iteration_stats: Any) -> None:
        """Record the requests that finished in an iteration, and its counts where vLLM takes them."""
        details = getattr(scheduler_stats, "iteration_details", None)
        if details is not None and not getattr(details, "is_dummy", False):
            self._record_step(scheduler_stats, details)
        for request in getattr(iteration_stats, "finished_requests", ()):
            self._record_request(request, iteration_stats.iteration_timestamp)

    def _record_request(self, stats: Any, finished_s: float) -> None:
        """Record one request that is over; ``finished_s`` is when, by the wall clock."""
        recorder, handle = self._recorder, self._recorder.next_handle()
        end_s = time.perf_counter() - max(0.0, time.time() - finished_s)
        arrived_ns = round((end_s - stats.e2e_latency) * 1e9)
        # As vLLM's own span calls it; the first versions do not say whose statistics these are.
        request_id = getattr(stats, "request_id", None)
        tokens, what = stats.num_prompt_tokens, operation(request_id or "", pooling=self._pooling)
        recorder.emit(Kind.REQUEST, handle, (self._source, arrived_ns, request_id, None, what, tokens, _CAPABILITY))
        reason, answered = str(stats.finish_reason), None if self._pooling else stats.num_generation_tokens
        error = "engine_error" if reason == "error" else None
        cached = ((CACHED_TOKENS, getattr(stats, "num_cached_tokens", 0)),)
        recorder.emit(Kind.REQUEST_END, handle, (reason, tokens, answered, error, cached, _times(stats, end_s)))

    def _record_step(self, stats: Any, details: Any) -> None:
        counts = (
            details.num_ctx_requests,
            details.num_ctx_tokens,
            details.num_generation_requests,
            details.num_generation_tokens,
        )
        if any(counts):
            state = (stats.num_running_reqs, stats.num_waiting_reqs, stats.kv_cache_usage)
            payload = (self._source, round(details.elapsed_ms * 1e6), *counts, *state)
            self._recorder.emit(Kind.STEP_COUNTS, details.iteration_index, payload)


def _times(stats: Any, end_s: float) -> tuple[float, ...] | None:
    """Return when a request was first scheduled, and when its first and last token were made, perf_counter seconds.

    vLLM tells durations; they are laid end to end before its end. What lies between two tokens is not known.
    """
    if stats.num_generation_tokens < 1 or not stats.inference_time > 0:
        return None
    first_s = end_s - stats.decode_time
    started_s = first_s - stats.prefill_time
    return (started_s, first_s, end_s) if stats.num_generation_tokens > 1 else (started_s, first_s)
