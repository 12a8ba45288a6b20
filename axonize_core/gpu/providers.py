"""Built-in plugin: the GPU providers that come with Axonize, chosen by ``AXONIZE_GPU_PROVIDER``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pynvml

from axonize_core.gpu.nvml import NvmlProvider
from axonize_core.gpu.simulated import SimulatedProvider
from axonize_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from axonize_core.gpu.identity import Provider
    from axonize_core.plugins import AgentContext

logger = logging.getLogger(__name__)


@hookimpl(trylast=True)
def axonize_gpu_provider(context: AgentContext) -> Provider | None:
    """Return NVML where there is a driver, the simulated device where it was asked for, else None."""
    choice = context.settings.gpu_provider
    if choice == "simulated":
        return SimulatedProvider()
    if choice in ("auto", "nvml"):
        try:
            return NvmlProvider()
        except pynvml.NVMLError as e:
            if choice == "nvml":
                logger.error("AXONIZE_GPU_PROVIDER=nvml, but NVML cannot be used: %s", e)  # noqa: TRY400
    return None
