"""What NVML's errors mean for the one who asked: a device without the field, a device that is gone, or no driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import pynvml

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DRIVER_GONE", "LASTING", "LOST", "code", "optional", "text"]

Value = TypeVar("Value")

LASTING = frozenset(
    {pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_INVALID_ARGUMENT}
)
"""Answers that stay as they are while the driver does."""
DRIVER_GONE = frozenset(
    {
        pynvml.NVML_ERROR_UNINITIALIZED,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
    }
)
LOST = DRIVER_GONE | {pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED, pynvml.NVML_ERROR_NOT_FOUND}
"""Answers after which nothing else about the device is worth asking."""


def code(error: Exception) -> int:
    """Return the NVML error number."""
    return int(error.value)  # type: ignore[attr-defined] # of NVMLError, which has no types


def text(value: Any) -> str:
    """Return what older bindings give as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def optional(read: Callable[..., Value], *arguments: Any) -> Value | None:
    """Return the answer, or None when the device has none; what says the device is gone is raised."""
    try:
        return read(*arguments)
    except pynvml.NVMLError as e:
        if code(e) in LOST - {pynvml.NVML_ERROR_NOT_FOUND}:
            raise
        return None
