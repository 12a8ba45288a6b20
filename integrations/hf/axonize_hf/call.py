"""What the arguments of one ``generate`` say; touches no values on a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from axonize_hf.tokens import StopRules, end_tokens, row_lengths

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Call", "read_call"]


_LIBRARY = "transformers.generation.utils"


class Call(NamedTuple):
    """What a call of ``generate`` says; ``prefix`` is how many tokens of its output are not new.

    ``own`` means that the model has a ``generate`` of its own in front of the library's; ``start`` is the token that
    starts a decoder.
    """

    rows: int
    prefix: int
    prompt_tokens: tuple[int | None, ...]
    mode: str
    chunked: bool
    rules: StopRules
    own: bool = False
    start: int | None = None


def read_call(model: Any, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Read the arguments of ``original(inputs, generation_config, **kwargs)``."""
    given = args[1] if len(args) > 1 else kwargs.get("generation_config")
    kept = model.generation_config

    def setting(name: str) -> Any:
        value = kwargs.get(name)
        value = getattr(given, name, None) if value is None else value
        return getattr(kept, name, None) if value is None else value

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
        own=getattr(original, "__module__", None) != _LIBRARY,
        start=setting("decoder_start_token_id"),
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
