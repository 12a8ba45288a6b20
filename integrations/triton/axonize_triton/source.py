"""Who emits: one instance of a model, as ``initialize`` is told of it."""

from __future__ import annotations

import os
import re
from typing import Any

from axonize_core.recorder import get_recorder
from axonize_core.settings import get_settings

__all__ = ["ENGINE", "PROVIDER", "device_of", "model_source"]

ENGINE = "triton"
PROVIDER = "triton"
_DEVICE = re.compile(r"(cuda|gpu|cpu)(?::(\d+))?", re.IGNORECASE)


def model_source(args: dict[str, str], device: str | None, service_name: str | None) -> int:
    """Return the source of a model's instance.

    Args:
        args: what ``initialize`` was given.
        device: what it really runs on, where its instance group does not say.
        service_name: of its spans; by default the environment's.

    Raises:
        ValueError: the device cannot be read.
    """
    attributes = (
        ("ai.model.version", args.get("model_version")),
        ("ai.model.instance", args.get("model_instance_name")),
    )
    name = service_name or get_settings().service_name or f"unknown_service:{ENGINE}"
    known = tuple((key, value) for key, value in attributes if value)
    given = os.environ.get("AXONIZE_TRITON_DEVICE") or device
    return get_recorder().source(ENGINE, name, args.get("model_name") or "", PROVIDER, device_of(args, given), known)


def device_of(args: dict[str, str], given: str | None) -> tuple[str, int, str | None]:
    """Return type, index and no uuid: Triton's ids count the devices that its process sees, as CUDA's do.

    Raises:
        ValueError: ``given`` is not like ``cuda:0`` or ``cpu``.
    """
    if given:
        found = _DEVICE.fullmatch(given.strip())
        if found is None:
            raise ValueError(f"device {given!r} is not like cuda:0 or cpu")
        kind: Any = "cpu" if found[1].lower() == "cpu" else "cuda"
        return kind, int(found[2] or 0), None
    if args.get("model_instance_kind") == "GPU":
        return "cuda", int(args.get("model_instance_device_id") or 0), None
    return "cpu", 0, None
