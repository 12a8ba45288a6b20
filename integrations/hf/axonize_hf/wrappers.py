"""What stands around a model: PEFT adapters, ``torch.compile``, DataParallel. The model inside is recorded.

Nothing of PEFT is imported: what it keeps on a model and on its layers says which adapter answers.
"""

from __future__ import annotations

import sys
from types import MethodType
from typing import Any

from axonize_core.attributes import ADAPTERS
from axonize_hf.run import guarded

__all__ = ["adapters", "rebind", "unwrapped"]

_INSIDE = ("_orig_mod", "module")
_PREPARE = ("prepare_inputs_for_generation", "base_model_prepare_inputs_for_generation")


def unwrapped(target: Any) -> Any:
    """Return the PreTrainedModel inside, or what stands in its place where there is none."""
    transformers = sys.modules.get("transformers")
    while transformers is not None and not isinstance(target, transformers.PreTrainedModel):
        modules = vars(target).get("_modules", {}) if hasattr(target, "__dict__") else {}
        inner = next((modules[name] for name in _INSIDE if name in modules), None)
        if inner is None and hasattr(type(target), "get_base_model"):
            inner = target.get_base_model()
        if inner is None:
            return target
        target = inner
    return target


def rebind(target: Any, model: Any) -> None:
    """Let methods of the model that PEFT's prompt learning keeps bound be those of the model's present class."""
    model_class: Any = type(model)
    for holder in (target, model):
        for name in _PREPARE:
            kept = vars(holder).get(name)
            if isinstance(kept, MethodType) and kept.__self__ is model:
                setattr(holder, name, model_class.prepare_inputs_for_generation.__get__(model))


@guarded("hf.adapters")
def adapters(model: Any, rows: int) -> tuple[Any, ...] | None:
    """Return each row's attributes naming the adapters that answer it; None where there are none.

    Walks the modules up to the first one with an adapter, of a model that has adapters only.
    """
    prompt = getattr(vars(model).get(_PREPARE[0]), "__self__", model)
    if prompt is not model:
        return _attributes([prompt.active_adapters] * rows)
    if "peft_config" not in vars(model):
        return None
    layer = next((m for m in model.modules() if "_active_adapter" in vars(m)), None)
    if layer is None or layer.disable_adapters:
        return None
    return _attributes(_mixed(layer, rows) or [layer.active_adapters] * rows)


def _mixed(layer: Any, rows: int) -> list[list[str]] | None:
    """Return the adapter of each row of a call with ``adapter_names``, which PEFT hands to its layers by hooks."""
    hooks = layer._forward_pre_hooks.values()  # noqa: SLF001 - PEFT hands them over there
    given = [getattr(hook, "keywords", {}).get("adapter_names") for hook in hooks]
    names = next((names for names in given if names), None)
    if names is None:
        return None
    # Beams and returned sequences repeat a row's name.
    own = names[:: max(1, len(names) // rows)]
    return [[] if name == "__base__" else [name] for name in own]


def _attributes(names: list[Any]) -> tuple[Any, ...] | None:
    found = tuple(((ADAPTERS, tuple(row)),) if row else None for row in names)
    return found if any(found) else None
