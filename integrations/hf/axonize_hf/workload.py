"""What ``axonize bench overhead`` measures with: a text-generation pipeline that serves one batch again and again."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from axonize_hf.demo_model import MODEL_NAME, build_pipeline
from axonize_hf.instrumentation import instrument, uninstrument

__all__ = ["TextGeneration"]

_PROMPTS = ("Who shared this batch?", "Why was it slow?", "What ran on which slice?", "How long did it wait?")
_NEW_TOKENS = 32
_SEED = 7


class TextGeneration:
    """Greedy generation of so many tokens for each of four prompts in one batch."""

    def __init__(self, model: str | None = None) -> None:
        self._pipe = _load(model) if model else build_pipeline(_SEED)
        # Every call makes as many tokens: no text ends early.
        self._pipe.model.generation_config.eos_token_id = None
        if self._pipe.tokenizer.pad_token_id is None:
            self._pipe.tokenizer.pad_token_id = 0
        config = self._pipe.model.config
        self.description = (
            f"{model or MODEL_NAME}, {self._pipe.model.num_parameters() / 1e6:.1f} M parameters, {config.model_type}, "
            f"{len(_PROMPTS)} prompts × {_NEW_TOKENS} tokens a call"
        )
        self.device = str(self._pipe.device)
        self.versions = {name: metadata.version(name) for name in ("transformers", "torch")}

    def switch(self, *, on: bool) -> None:
        """Instrument the pipeline, or take the instrumentation away."""
        instrument(self._pipe) if on else uninstrument(self._pipe)

    def run(self) -> int:
        """Serve the batch."""
        self._pipe(list(_PROMPTS), batch_size=len(_PROMPTS), max_new_tokens=_NEW_TOKENS, do_sample=False)
        return len(_PROMPTS) * _NEW_TOKENS


def _load(model: str) -> Any:
    import torch  # noqa: PLC0415 - only the measured process pays for it
    from transformers import pipeline  # noqa: PLC0415 - same

    return pipeline("text-generation", model=model, device="cuda:0" if torch.cuda.is_available() else "cpu")
