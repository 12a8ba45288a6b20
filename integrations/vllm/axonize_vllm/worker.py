"""Which device each worker of an engine drives, told once, and what its steps took there; the latter opt-in.

In the process of each worker, on the thread that runs its model: vLLM's wrapper around every kind of worker is the
place, so those of other devices are covered as well. On a CPU, and with one device in the engine core's own process
(``distributed_executor_backend="uni"``), it is the same.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

from axonize_core.gpu.torch_device import torch_device
from axonize_core.recorder import get_recorder
from axonize_core.settings import get_settings
from axonize_vllm.source import engine_id, worker_source
from axonize_vllm.step_times import StepTimes

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["instrument", "time_steps"]

logger = logging.getLogger("axonize")


def instrument() -> None:
    """Tell of every worker that this process initialises from now on. Idempotent.

    Raises:
        AttributeError: this vLLM has no such wrapper; nothing was changed.
    """
    from vllm.v1.worker.worker_base import WorkerWrapperBase  # noqa: PLC0415 - the user's

    original = WorkerWrapperBase.init_device
    if not hasattr(original, "axonize_original"):
        WorkerWrapperBase.init_device = _telling(original)


def _telling(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``WorkerWrapperBase.init_device`` that tells afterwards which device it was."""

    @functools.wraps(original)
    def init_device(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        try:
            _tell(self.worker)
        except Exception:  # noqa: BLE001 - nothing of ours may stop a worker
            get_recorder().count_error("vllm.worker")
        return result

    init_device.axonize_original = original  # type: ignore[attr-defined]
    return init_device


def _tell(worker: Any) -> None:
    config, recorder = worker.vllm_config, get_recorder()
    device = _device(worker)
    worker_source(config, worker.rank, device)
    recorder.start()
    if get_settings().vllm_device_time:
        if device[0] != "cuda":
            logger.warning(
                "axonize: AXONIZE_VLLM_DEVICE_TIME needs CUDA devices, this is %s: no device time", device[0]
            )
            return
        import torch  # noqa: PLC0415 - vLLM's own

        make_event = functools.partial(torch.cuda.Event, enable_timing=True)
        time_steps(worker, StepTimes(recorder, engine_id(config), make_event))


def _device(worker: Any) -> tuple[str, int, str | None]:
    """Return the worker's device; the CPU worker of the first versions does not name its own."""
    if getattr(worker, "device", None) is not None:
        return torch_device(worker.device)
    return str(getattr(worker.vllm_config.device_config, "device_type", "cpu")), 0, None


def time_steps(worker: Any, times: StepTimes) -> None:
    """Mark the begin and end of each step of this worker from now on.

    A step is ``execute_model`` and, where that returns nothing yet, the ``sample_tokens`` after it.
    """
    execute_model, sample_tokens = worker.execute_model, worker.sample_tokens

    @functools.wraps(execute_model)
    def execute(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        times.begin(getattr(scheduler_output, "axonize_step", None))
        output = execute_model(scheduler_output, *args, **kwargs)
        if output is not None:
            times.end()
        return output

    @functools.wraps(sample_tokens)
    def sample(*args: Any, **kwargs: Any) -> Any:
        output = sample_tokens(*args, **kwargs)
        times.end()
        return output

    worker.execute_model, worker.sample_tokens = execute, sample
