"""Tiny models of every kind the matrix needs, with random weights, made from configs; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import tokenizers
import torch
import transformers as hf

__all__ = ["causal_lm", "encoder_decoder", "image", "lora", "pipe", "rng_sound", "whisper"]

VOCAB = 64
WORDS = ["a", "b", "the", "model", "served", "this", "request", "on", "one", "of", "our", "gpus", "example", "is", "."]
SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>", "<mask>"]
CHAT = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
BERT = {**SMALL, "vocab_size": VOCAB, "num_hidden_layers": 1, "max_position_embeddings": 64, "pad_token_id": 0}
SAMPLING_RATE = 16_000
WINDOW_S = 2


def _seeded(make: Any) -> Any:
    torch.manual_seed(0)
    return make().eval()


def tokenizer(padding_side: str = "left") -> Any:
    """Return a tokenizer of whole words that knows chats."""
    fillers = [f"w{n}" for n in range(VOCAB - len(SPECIALS) - len(WORDS))]
    vocabulary = {word: n for n, word in enumerate([*SPECIALS, *WORDS, *fillers])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.decoder = tokenizers.decoders.WordPiece()
    names = ("pad_token", "bos_token", "eos_token", "unk_token", "mask_token")
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        padding_side=padding_side,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=64,
        **dict(zip(names, SPECIALS, strict=True)),
    )
    made.chat_template = CHAT
    return made


def causal_lm(layers: int = 2) -> Any:
    """Return a Llama; no token ends its answers, so their length is the limit."""
    config = hf.LlamaConfig(
        **SMALL, vocab_size=VOCAB, num_hidden_layers=layers, num_key_value_heads=2, max_position_embeddings=256,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return _endless(_seeded(lambda: hf.LlamaForCausalLM(config)))


def encoder_decoder() -> Any:
    """Return a T5 of one layer; no token ends its answers."""
    config = hf.T5Config(
        vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    return _endless(_seeded(lambda: hf.T5ForConditionalGeneration(config)))


def _endless(model: Any) -> Any:
    # Padding that a model makes itself could not be told from padding behind a row's end.
    model.generation_config.suppress_tokens = list(range(len(SPECIALS)))
    return model


def lora(model: Any) -> Any:
    """Return the model with a LoRA adapter that changes its answers."""
    import peft

    torch.manual_seed(1)
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2, init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


def rng_sound(seconds: float, seed: int = 0) -> Any:
    """Return mono noise, float32 at 16 kHz."""
    return np.random.default_rng(seed).standard_normal(int(seconds * SAMPLING_RATE)).astype(np.float32)


def image(seed: int = 0) -> Any:
    """Return an RGB picture of noise, 32 × 32."""
    from PIL import Image

    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8))


def whisper() -> Any:
    """Return a Whisper with timestamps whose long form works in windows of 2 s."""
    specials = {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 3}
    config = hf.WhisperConfig(
        vocab_size=200, num_mel_bins=80, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_source_positions=100,
        max_target_positions=64, suppress_tokens=None, begin_suppress_tokens=None, **specials,
    )  # fmt: skip
    model = _seeded(lambda: hf.WhisperForConditionalGeneration(config))
    model.generation_config = hf.GenerationConfig(
        **specials, no_timestamps_token_id=98, is_multilingual=False, return_timestamps=True, max_length=12,
        alignment_heads=[[0, 0]],
    )  # fmt: skip
    return model


def whisper_features() -> Any:
    """Return what makes Whisper's input out of sound, in windows of 2 s."""
    return hf.WhisperFeatureExtractor(chunk_length=WINDOW_S)


def _bert(head: str, **options: Any) -> Any:
    config = hf.BertConfig(**BERT, **options)
    return _seeded(lambda: getattr(hf, head)(config))


def _vit(head: str, **options: Any) -> Any:
    config = hf.ViTConfig(**SMALL, num_hidden_layers=1, image_size=32, patch_size=16, **options)
    return _seeded(lambda: getattr(hf, head)(config))


def _wav2vec2(head: str, **options: Any) -> Any:
    config = hf.Wav2Vec2Config(
        **SMALL, vocab_size=VOCAB, num_hidden_layers=1, conv_dim=(8, 8), conv_kernel=(10, 4), conv_stride=(80, 4),
        num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, pad_token_id=0, **options,
    )  # fmt: skip
    return _seeded(lambda: getattr(hf, head)(config))


def _sound_features() -> Any:
    return hf.Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=SAMPLING_RATE, padding_value=0.0, return_attention_mask=False
    )


def _image_processor() -> Any:
    return hf.ViTImageProcessor(size={"height": 32, "width": 32})


def _text(model: Any) -> dict[str, Any]:
    return {"model": model, "tokenizer": tokenizer()}


def _seen(model: Any) -> dict[str, Any]:
    return {"model": model, "image_processor": _image_processor()}


def _heard(model: Any) -> dict[str, Any]:
    return {"model": model, "feature_extractor": _sound_features()}


LABELS = {"id2label": {0: "neutral", 1: "contradiction", 2: "entailment"}, "label2id": {"neutral": 0, "contradiction": 1, "entailment": 2}}  # fmt: skip

PARTS = {
    "text-generation": lambda: _text(causal_lm()),
    "text2text-generation": lambda: _text(encoder_decoder()),
    "summarization": lambda: _text(encoder_decoder()),
    "translation_en_to_fr": lambda: _text(encoder_decoder()),
    "text-classification": lambda: _text(_bert("BertForSequenceClassification", num_labels=3)),
    "token-classification": lambda: _text(_bert("BertForTokenClassification", num_labels=3)),
    "question-answering": lambda: _text(_bert("BertForQuestionAnswering")),
    "fill-mask": lambda: _text(_bert("BertForMaskedLM")),
    "zero-shot-classification": lambda: _text(_bert("BertForSequenceClassification", **LABELS)),
    "feature-extraction": lambda: _text(_bert("BertModel")),
    "audio-classification": lambda: _heard(_wav2vec2("Wav2Vec2ForSequenceClassification", num_labels=3)),
    "image-classification": lambda: _seen(_vit("ViTForImageClassification", num_labels=3)),
    "image-feature-extraction": lambda: _seen(_vit("ViTModel")),
    "ctc": lambda: {**_heard(_wav2vec2("Wav2Vec2ForCTC")), "tokenizer": tokenizer("right")},
    "seq2seq": lambda: {
        "model": whisper(),
        "feature_extractor": whisper_features(),
        "tokenizer": hf.WhisperTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer, pad_token="<pad>"),
    },
}  # fmt: skip


def pipe(task: str, kind: str | None = None, **options: Any) -> Any:
    """Return a pipeline for a task on the CPU; ``kind`` names the parts where a task has several kinds of model."""
    return hf.pipeline(task, **PARTS[kind or task](), device="cpu", **options)
