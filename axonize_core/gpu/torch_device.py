"""What torch calls a device, as a source says it: type, index, and the uuid by which NVML knows it too."""

from __future__ import annotations

from typing import Any

__all__ = ["torch_device"]


def torch_device(device: Any) -> tuple[str, int, str | None]:
    """Return type, index and uuid of a ``torch.device``; the uuid of CUDA devices only, None where torch does not tell.

    Asks torch, which must have initialised the device by then or will do so.
    """
    if device.type == "cpu":
        return "cpu", 0, None
    return device.type, device.index or 0, _uuid(device) if device.type == "cuda" else None


def _uuid(device: Any) -> str | None:
    """Return what NVML calls the device, ``GPU-…``."""
    import torch  # noqa: PLC0415 - the user's

    try:
        uuid = str(torch.cuda.get_device_properties(device).uuid)
    except (AttributeError, RuntimeError):
        return None
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
