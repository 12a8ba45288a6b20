"""A small causal language model and its tokenizer, made on the spot: nothing is downloaded.

The weights are random, so the text is nonsense; the work per token is real.
"""

from __future__ import annotations

from typing import Any

__all__ = ["MODEL_NAME", "build_pipeline"]

MODEL_NAME = "axonize-demo-llama"
_VOCABULARY = 384
_ENDINGS = 12
_CONTEXT = 512
_SPECIAL = {"pad_token": "<pad>", "eos_token": "<eos>"}
_CORPUS = (
    "A request arrives, waits in the queue, is prefilled, and then decoded token by token.",
    "Which device did it really run on, and who shared its batch?",
    "Energy is measured in joules, power in watts, memory in bytes and time in seconds.",
    "The quick brown fox jumps over the lazy dog while the scheduler fills the next step.",
)


def build_pipeline(seed: int) -> Any:
    """Return a text-generation pipeline on the first CUDA device, or on one CPU thread."""
    import torch  # noqa: PLC0415  only the serving process pays for it
    from transformers import LlamaForCausalLM, pipeline  # noqa: PLC0415  same

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    tokenizer = _tokenizer()
    model = LlamaForCausalLM(_config(tokenizer)).eval()
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    return pipeline("text-generation", model=model, tokenizer=tokenizer, device=device)


def _tokenizer() -> Any:
    """Train a byte-level BPE tokenizer on a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(_SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    trained.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=trained, padding_side="left", **_SPECIAL)


def _config(tokenizer: Any) -> Any:
    """Return the configuration; several tokens end a text, so that random sampling ends texts early."""
    from transformers import LlamaConfig  # noqa: PLC0415

    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=_CONTEXT,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=[tokenizer.eos_token_id, *range(len(tokenizer) - _ENDINGS, len(tokenizer))],
        bos_token_id=None,
    )
