"""One outermost ``generate``: what its arguments say, and its records from begin to end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axonize_core.attributes import ACCEPTED_TOKENS, DRAFTED_TOKENS
from axonize_core.recorder import get_recorder
from axonize_hf.answer import read_answer
from axonize_hf.call import read_call
from axonize_hf.device_time import device_time
from axonize_hf.run import Batch, Run, append_step, close_rows, current_batch, current_run, guarded, open_rows
from axonize_hf.wrappers import adapters

if TYPE_CHECKING:
    from collections.abc import Callable

    from axonize_hf.call import Call

__all__ = ["record_generate"]


def record_generate(
    model: Any, source: int | None, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call ``original`` once, return what it returns and raise what it raises; record it if it is outermost."""
    outer = current_run.get()
    if outer is not None:
        return _nested(model, outer, original, args, kwargs)
    # Continuous batching in disguise: its manager records these requests, unless a pipeline has.
    continuous = kwargs.get("cache_implementation") == "paged" and current_batch.get() is None
    generation = None if source is None or continuous else _begin(model, source, original, args, kwargs)
    if generation is None:
        return original(*args, **kwargs)
    try:
        output = original(*args, **kwargs)
    except BaseException as error:
        generation.fail(generation.run.leave(), error)
        raise
    generation.finish(generation.run.leave(), output)
    return output


def _nested(model: Any, outer: Run, original: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    """Run a ``generate`` inside another; what an assistant drafts are not the steps of the outer one."""
    speculative = outer.mode == "speculative"
    if outer.owner is model and not speculative:
        return original(*args, **kwargs)
    token = append_step.set(outer.drafted.append if speculative else None)
    try:
        return original(*args, **kwargs)
    finally:
        append_step.reset(token)


@guarded("hf.generate.begin")
def _begin(
    model: Any, source: int, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Generation:
    """Announce the requests, unless a pipeline has done so, and the run."""
    started_ns = get_recorder().clock()
    call = read_call(model, original, args, kwargs)
    batch = current_batch.get()
    own = batch is None
    if batch is None:
        seqs = open_rows(source, started_ns, "text_completion", call.prompt_tokens)
        batch = Batch(source, seqs, call.prompt_tokens)
    batch.rules, batch.prefix = call.rules, call.prefix
    said = adapters(model, len(batch.seqs))
    run = Run(model, batch, call.mode, device_time(model))
    return Generation(call, batch, run, said, own=own)


class Generation:
    """A ``generate`` under way; ``own`` means that its requests are its own and not a pipeline's."""

    def __init__(self, call: Call, batch: Batch, run: Run, adapters: tuple[Any, ...] | None, *, own: bool) -> None:
        self.run = run
        self._call = call
        self._batch = batch
        self._adapters = adapters
        self._own = own

    @guarded("hf.generate.fail")
    def fail(self, steps: int, error: BaseException) -> None:
        """Record that ``generate`` raised. Each step but the last one made a token that was seen."""
        new_tokens = None if self._call.chunked else steps or None
        self.run.end(new_tokens, type(error).__name__, self._adapters)
        if self._own:
            close_rows(self._batch.seqs, self._call.prompt_tokens, error=error)

    @guarded("hf.generate.finish")
    def finish(self, steps: int, output: Any) -> None:
        """Record what ``generate`` returned."""
        answer = read_answer(output, steps, self._call)
        new_tokens = None if answer is None else answer.new_tokens
        if answer is not None and not answer.padded:
            self._batch.rules = self._call.rules._replace(pad=None)
        self.run.end(new_tokens, None, self._attributes(new_tokens, steps))
        if self._own:
            outputs = [(None, None)] * self._call.rows if answer is None else answer.requests
            close_rows(self._batch.seqs, self._call.prompt_tokens, outputs)

    def _attributes(self, new_tokens: int | None, steps: int) -> tuple[Any, ...] | None:
        """Return what each member's span says beyond its numbers; speculation has but one."""
        if self.run.mode != "speculative" or new_tokens is None:
            return self._adapters
        # Every step adds a token of its own to those it accepts.
        said = [(ACCEPTED_TOKENS, new_tokens - steps)] if new_tokens >= steps else []
        if self.run.drafted:
            said.append((DRAFTED_TOKENS, len(self.run.drafted)))
        (row,) = self._adapters or (None,)
        return ((*(row or ()), *said),)
