"""One outermost ``generate``: what its arguments say, and its records from begin to end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from axonize_core.recorder import get_recorder
from axonize_hf.context import context_at, current_contexts
from axonize_hf.run import (
    Batch,
    Run,
    append_step,
    close_request,
    current_batch,
    current_run,
    guarded,
    open_request,
)
from axonize_hf.tokens import StopRules, count_rows, end_tokens, host_rows, row_lengths

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Call", "read_call", "record_generate"]


class Call(NamedTuple):
    """What a call of ``generate`` says; ``prefix`` is how many tokens of its output are not new."""

    rows: int
    prefix: int
    prompt_tokens: tuple[int | None, ...]
    mode: str
    chunked: bool
    rules: StopRules


def record_generate(
    model: Any, source: int | None, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call ``original`` once, return what it returns and raise what it raises; record it if it is outermost."""
    outer = current_run.get()
    if outer is not None:
        return _nested(model, outer, original, args, kwargs)
    # Continuous batching in disguise: its manager records these requests, unless a pipeline has.
    continuous = kwargs.get("cache_implementation") == "paged" and current_batch.get() is None
    generation = None if source is None or continuous else _begin(model, source, args, kwargs)
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
    """Run a ``generate`` inside another; the steps of another model (an assistant) are not the outer's."""
    if outer.owner is model:
        return original(*args, **kwargs)
    token = append_step.set(None)
    try:
        return original(*args, **kwargs)
    finally:
        append_step.reset(token)


@guarded("hf.generate.begin")
def _begin(model: Any, source: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Generation:
    """Announce the requests, unless a pipeline has done so, and the run."""
    started_ns = get_recorder().clock()
    call = read_call(model, args, kwargs)
    batch = current_batch.get()
    own = batch is None
    if batch is None:
        contexts = current_contexts()
        seqs = tuple(
            open_request(source, context_at(contexts, row), started_ns, "text_completion", tokens)
            for row, tokens in enumerate(call.prompt_tokens)
        )
        batch = Batch(source, seqs, call.prompt_tokens)
    batch.rules, batch.prefix = call.rules, call.prefix
    return Generation(call, batch, Run(model, batch, call.mode), own=own)


class Generation:
    """A ``generate`` under way; ``own`` means that its requests are its own and not a pipeline's."""

    def __init__(self, call: Call, batch: Batch, run: Run, *, own: bool) -> None:
        self.run = run
        self._call = call
        self._batch = batch
        self._own = own

    @guarded("hf.generate.fail")
    def fail(self, steps: int, error: BaseException) -> None:
        """Record that ``generate`` raised. Each step but the last one made a token that was seen."""
        self.run.end(None if self._call.chunked else steps or None, type(error).__name__)
        if self._own:
            for seq, tokens in zip(self._batch.seqs, self._call.prompt_tokens, strict=False):
                close_request(seq, tokens, error=error)

    @guarded("hf.generate.finish")
    def finish(self, steps: int, output: Any) -> None:
        """Record what ``generate`` returned; reads shapes, and values only in host memory."""
        new_tokens = _new_tokens(output, steps, self._call)
        self.run.end(new_tokens, None)
        if self._own:
            outputs = _outputs(output, self._call) or [(None, None)] * self._call.rows
            for seq, tokens, counted in zip(self._batch.seqs, self._call.prompt_tokens, outputs, strict=False):
                close_request(seq, tokens, counted)


@guarded("hf.generate.length")
def _new_tokens(output: Any, steps: int, call: Call) -> int | None:
    """Return how many tokens each row got, padding included.

    Beam search may return fewer than it computed, one per step; only chunks of a prompt are steps without a token.
    """
    sequences = _sequences(output)
    if sequences.is_floating_point():
        return None  # sound: how many tokens it was made of is not said
    new_tokens = int(sequences.shape[-1]) - call.prefix
    return max(new_tokens, steps) if call.mode == "generate" and not call.chunked else new_tokens


def _sequences(output: Any) -> Any:
    """Return the ids among what ``generate`` returned: they alone, or one of several under its name or first."""
    if isinstance(output, dict):
        return output["sequences"]
    return output[0] if isinstance(output, tuple) else output


@guarded("hf.generate.count")
def _outputs(output: Any, call: Call) -> list[tuple[int | None, str | None]]:
    """Return each request's tokens and finish reason, as far as they are known without asking the device."""
    sequences = _sequences(output)
    if sequences.is_floating_point():
        return [(None, None)] * call.rows
    rows = host_rows(sequences, call.prefix)
    if rows is not None:
        per_request = len(rows) // call.rows
        starts = range(0, per_request * call.rows, per_request)
        return [count_rows(rows[start : start + per_request], call.rules) for start in starts]
    if len(sequences) > 1:
        return [(None, None)] * call.rows
    # One row has no padding; whether its last token at the limit was the end is known to the device only.
    new_tokens = int(sequences.shape[-1]) - call.prefix
    stopped = call.rules.limit is not None and new_tokens < call.rules.limit
    return [(new_tokens, "stop" if stopped else None)]


def read_call(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Read the arguments of ``generate(inputs, generation_config, **kwargs)``; touches no values on a device."""

    def setting(name: str) -> Any:
        configs = (args[1] if len(args) > 1 else kwargs.get("generation_config"), model.generation_config)
        found = (kwargs.get(name), *(getattr(config, name, None) for config in configs))
        return next((value for value in found if value is not None), None)

    lengths = _prompt_tokens(args, kwargs)
    prefix = _prefix(model, args, kwargs)
    speculative = setting("prompt_lookup_num_tokens") or setting("assistant_early_exit")
    return Call(
        rows=len(lengths),
        prefix=prefix,
        prompt_tokens=lengths,
        mode="speculative" if speculative or kwargs.get("assistant_model") is not None else "generate",
        chunked=setting("prefill_chunk_size") is not None,
        rules=_rules(setting, prefix),
    )


def _ids(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = args[0] if args else kwargs.get("inputs")
    return kwargs.get("input_ids") if given is None else given


def _prompt_tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | None, ...]:
    """Return each row's prompt tokens; None for inputs that are no tokens (audio, images)."""
    embeds = kwargs.get("inputs_embeds")
    given = _ids(args, kwargs)
    if given is None:
        given = embeds
    if given is not None and (given is embeds or not given.is_floating_point()):
        return row_lengths(given, kwargs.get("attention_mask"))
    if given is None:
        given = next((v for v in kwargs.values() if hasattr(v, "is_floating_point") and v.ndim > 1), None)
    return (None,) * (1 if given is None else given.shape[0])


def _prefix(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Return how many tokens of the output are the prompt: none of them if it came as embeddings."""
    ids = kwargs.get("decoder_input_ids") if model.config.is_encoder_decoder else _ids(args, kwargs)
    if ids is not None:
        return int(ids.shape[-1])
    return 0 if kwargs.get("inputs_embeds") is not None and not model.config.is_encoder_decoder else 1


def _rules(setting: Callable[[str], Any], prefix: int) -> StopRules:
    eos, pad = setting("eos_token_id"), setting("pad_token_id")
    limit, total = setting("max_new_tokens"), setting("max_length")
    if limit is None and total is not None:
        limit = total - prefix
    return StopRules(end_tokens(eos), pad if isinstance(pad, int) else None, limit)
