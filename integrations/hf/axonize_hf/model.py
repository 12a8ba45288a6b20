"""What the class swap overrides on a model: ``generate`` and its per-step hook, or an encoder's call."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from axonize_core.recorder import Recorder
from axonize_hf.continuous import instrument_manager, managers, uninstrument_manager
from axonize_hf.encoder import record_forward
from axonize_hf.generation import record_generate
from axonize_hf.run import append_step, guarded
from axonize_hf.swap import is_swapped, swap, unswap
from axonize_hf.wrappers import rebind, unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["instrument_model", "sources", "uninstrument_model"]

sources: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""The SOURCE of each instrumented object."""


def instrument_model(target: Any, source: int) -> None:
    """Swap the class of a model, or of the one inside a wrapper; its ``generate`` (or calls) are recorded."""
    model = unwrapped(target)
    sources[model] = source
    if not is_swapped(model):
        generates = bool(model.can_generate())
        swap(model, _generative_overrides if generates else _encoder_overrides)
        own = vars(model).get("generate")
        if generates and own is not None:
            model.generate = InstanceGenerate(model, own)
    rebind(target, model)


def uninstrument_model(target: Any) -> None:
    """Undo ``instrument_model``, on the managers for continuous batching that it made too."""
    model = unwrapped(target)
    unswap(model)
    rebind(target, model)
    own = vars(model).get("generate")
    if isinstance(own, InstanceGenerate):
        model.generate = own.original
    sources.pop(model, None)
    for manager in [manager for manager in managers if manager.model is model]:
        uninstrument_manager(manager)


class InstanceGenerate:
    """Records a ``generate`` that is an attribute of the model itself (custom code), before which a class gives way.

    Copies and pickles of it are the original.
    """

    def __init__(self, model: Any, original: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original)
        self.model = model
        self.original = original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return record_generate(self.model, sources.get(self.model), self.original, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        import copy  # noqa: PLC0415 - rarely needed

        return copy.deepcopy(self.original, memo)

    def __reduce__(self) -> Any:
        return _same, (self.original,)


def _same(value: Any) -> Any:
    return value


def _generative_overrides(original: type[Any]) -> dict[str, Any]:
    generate_original, prepare_original = original.generate, original.prepare_inputs_for_generation
    step_of, clock = append_step.get, Recorder.clock

    @functools.wraps(generate_original)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        return record_generate(self, sources.get(self), generate_original.__get__(self), args, kwargs)

    # Once per step on the inference thread. generate() reads this signature, so it must be the original's; with
    # self among the arguments they are handed on as they came, a third cheaper than taken apart and joined again.
    @functools.wraps(prepare_original)
    def prepare_inputs_for_generation(*args: Any, **kwargs: Any) -> Any:
        append = step_of()
        if append is not None:
            append(clock())
        return prepare_original(*args, **kwargs)

    return {
        "generate": generate,
        "prepare_inputs_for_generation": prepare_inputs_for_generation,
        **_continuous_overrides(original),
        # transformers asks the names of the base classes, and the base of ours is another one.
        "can_generate": classmethod(lambda _: True),
    }


def _continuous_overrides(original: type[Any]) -> dict[str, Any]:
    """Return what makes every manager of a model recorded: all ways to continuous batching begin there."""
    make_original = getattr(original, "init_continuous_batching", None)
    if make_original is None:
        return {}

    @functools.wraps(make_original)
    def init_continuous_batching(self: Any, *args: Any, **kwargs: Any) -> Any:
        manager = make_original(self, *args, **kwargs)
        _record_manager(self, manager)
        return manager

    return {"init_continuous_batching": init_continuous_batching}


@guarded("hf.continuous.begin")
def _record_manager(model: Any, manager: Any) -> None:
    source = sources.get(model)
    if source is not None:
        instrument_manager(manager, source)


def _encoder_overrides(original: type[Any]) -> dict[str, Any]:
    from torch.compiler import is_compiling  # noqa: PLC0415 - torch is the user's

    call_original = original.__call__

    @functools.wraps(call_original)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807 - it is that method
        # Inside torch.compile nothing of ours may be traced; training is no inference.
        if is_compiling() or self.training:
            return call_original(self, *args, **kwargs)
        return record_forward(self, sources.get(self), call_original.__get__(self), args, kwargs)

    return {"__call__": __call__, "can_generate": classmethod(lambda _: False)}
