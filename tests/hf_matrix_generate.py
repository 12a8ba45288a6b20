"""The rows of the generate family: every mode of ``generate`` of a bare model."""

from __future__ import annotations

import contextlib
import functools
import logging
from typing import TYPE_CHECKING, Any

import torch
import transformers as hf

import hf_matrix_models as models
from hf_matrix_case import UNCHECKED, Case, Expected

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["CASES"]

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 5, 6, 7], [0, 0, 0, 0, 11, 12, 13, 14, 15]])
NEW = 7
STARTS_DECODER = 3
GREEDY = {"max_new_tokens": NEW, "do_sample": False}
ONE = Expected(prompt=(9,), tokens=(NEW,), finish="length")
TWO = Expected(prompt=(9, 5), tokens=(NEW, NEW), requests=2, finish="length")

# mode: rows of the batch, options, expected
DECODER = {
    "greedy": (1, GREEDY, ONE),
    "batch padded on the left": (2, GREEDY, TWO),
    "sampling": (2, {"max_new_tokens": NEW, "do_sample": True, "temperature": 0.8}, TWO),
    "beam search": (2, {**GREEDY, "num_beams": 3}, TWO),
    "beam sampling": (1, {"max_new_tokens": NEW, "do_sample": True, "num_beams": 3}, ONE),
    "diverse beam search": (1, {**GREEDY, "num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, ONE),
    "num_return_sequences": (
        2,
        {"max_new_tokens": NEW, "do_sample": True, "num_return_sequences": 2},
        TWO._replace(tokens=(2 * NEW, 2 * NEW)),
    ),
    "contrastive search": (1, {**GREEDY, "penalty_alpha": 0.6, "top_k": 4}, ONE),
    # Reads its head twice a step, so its steps cannot be counted there.
    "DoLa": (1, {**GREEDY, "dola_layers": "low"}, ONE._replace(counted=False)),
    "prompt lookup": (1, {**GREEDY, "prompt_lookup_num_tokens": 2}, ONE),
    "chunked prefill": (2, {**GREEDY, "prefill_chunk_size": 4}, TWO._replace(prefill_steps=3)),
    "static cache": (2, {**GREEDY, "cache_implementation": "static"}, TWO),
    "no cache": (2, {**GREEDY, "use_cache": False}, TWO),
    "dict with scores": (2, {**GREEDY, "return_dict_in_generate": True, "output_scores": True}, TWO),
}


def generate(model: Any, rows: int = 1, **options: Any) -> Any:
    """Generate for the first rows of the prompts and return tokens, and scores where there are some."""
    ids = IDS[:rows]
    output = model.generate(ids, attention_mask=(ids != 0).long(), **options)
    return (output.sequences, output.scores) if hasattr(output, "sequences") else output


def _assisted(model: Any) -> Any:
    return generate(model, assistant_model=models.causal_lm(), **GREEDY)


def _stopping(model: Any) -> Any:
    """Generate until the third token that a plain run makes."""
    end = int(generate(models.causal_lm(), **GREEDY)[0, IDS.shape[1] + 2])
    return generate(model, eos_token_id=end, pad_token_id=0, **GREEDY)


class _Pieces:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.pieces: list[Any] = []

    def put(self, value: Any) -> None:
        self.pieces.append(value.tolist())

    def end(self) -> None:
        self.pieces.append("end")


def _streamed(model: Any) -> Any:
    streamer = _Pieces()
    return generate(model, streamer=streamer, **GREEDY), streamer.pieces


def _from_embeddings(model: Any) -> Any:
    return model.generate(inputs_embeds=model.get_input_embeddings()(IDS[:1]), **GREEDY)


def _small_cache() -> dict[str, Any]:
    """Return the options that keep the cache of continuous batching at some pages, as each version wants them."""
    config = hf.GenerationConfig(**GREEDY, eos_token_id=-1, pad_token_id=0)
    if not hasattr(hf, "ContinuousBatchingConfig"):
        return {"generation_config": config}
    small = hf.ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=32)
    return {"generation_config": config, "continuous_batching_config": small}


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """Raise the first error of the library's serving thread, which it only logs."""
    seen: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("ContinuousBatchingLogger")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    if seen:
        raise RuntimeError(seen[0])


def _batched(model: Any) -> Any:
    """Generate by continuous batching; return the tokens of each request."""
    with _own_errors():
        outputs = model.generate_batch([IDS[0].tolist(), IDS[1, 4:].tolist()], **_small_cache())
    return sorted(list(output.generated_tokens) for output in outputs.values())


def _managed(model: Any) -> Any:
    """Generate by a continuous batching manager that is started and stopped by hand."""
    manager = model.init_continuous_batching(**_small_cache())
    with _own_errors():
        manager.start()
        try:
            name = manager.add_request(IDS[0].tolist(), max_new_tokens=NEW)
            while (result := manager.get_result(name, timeout=1)) is None and manager.is_running():
                pass
        finally:
            manager.stop(block=True)
    return list(result.generated_tokens)


def _heard(model: Any, seconds: float, **options: Any) -> Any:
    """Transcribe noise; longer than a window is Whisper's long form, a generate that calls generate."""
    sound = models.rng_sound(seconds)
    long = {"truncation": False, "padding": "longest"} if seconds > models.WINDOW_S else {}
    inputs = models.whisper_features()(
        sound, sampling_rate=models.SAMPLING_RATE, return_tensors="pt", return_attention_mask=True, **long
    )
    return model.generate(
        inputs.input_features, attention_mask=inputs.attention_mask, return_timestamps=True, **options
    )


def _said(output: Any) -> tuple[int, ...]:
    """Return how many tokens of a transcription the decoder made: not the one that starts it, which some return."""
    return tuple(len(row) - (row[0] == STARTS_DECODER) for row in output.tolist())


def _case(mode: str, use: Any, expected: Expected, make: Any = models.causal_lm) -> Case:
    return Case("generate", mode, make, use, expected)


CASES = [
    *(
        _case(mode, functools.partial(generate, rows=rows, **options), expected)
        for mode, (rows, options, expected) in DECODER.items()
    ),
    _case("end token", _stopping, ONE._replace(tokens=(3,), finish="stop")),
    _case("assisted decoding", _assisted, ONE),
    _case("streamer", _streamed, ONE),
    _case("prompt as embeddings", _from_embeddings, ONE),
    _case("encoder-decoder", functools.partial(generate, rows=2, **GREEDY), TWO, models.encoder_decoder),
    _case(
        "encoder-decoder, beam search",
        functools.partial(generate, rows=2, num_beams=3, **GREEDY),
        TWO,
        models.encoder_decoder,
    ),
    _case(
        "Whisper",
        functools.partial(_heard, seconds=1),
        Expected(prompt=(None,), tokens=_said, finish=UNCHECKED),
        models.whisper,
    ),
    _case(
        "Whisper, long form",
        functools.partial(_heard, seconds=3),
        Expected(prompt=(None,), tokens=_said, finish=UNCHECKED),
        models.whisper,
    ),
    _case("LoRA adapter (PEFT)", functools.partial(generate, **GREEDY), ONE, lambda: models.lora(models.causal_lm())),
    _case("continuous batching", _batched, TWO._replace(prompt=(5, 9))),
    _case("continuous batching, manager", _managed, ONE),
]
