"""Tiny transformers models made on the spot, and what the integration recorded while they ran.

The host frameworks are imported inside the fixtures: without them the tests that ask for a fixture are skipped.
"""

from __future__ import annotations

import copy
import importlib
import logging
from collections import Counter

import pytest

from axonize_core.frames import Kind
from axonize_core.recorder import get_recorder

WORDS = ["a", "b", "the", "model", "served", "this", "request", "on", "one", "of", "our", "gpus"]
SPECIALS = ["<pad>", "<bos>", "<eos>", "<unk>"]
VOCAB = 64
CHAT = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


class Recorded:
    """The records of the process's own recorder, held back from any agent."""

    def __init__(self, recorder):
        self.recorder = recorder

    def take(self):
        """Return the events since the last look as (kind, handle, payload) in order, and forget them."""
        records = []
        while self.recorder.queued():
            record = self.recorder.take()
            kind, handle, payload, t_ns = record.kind, record.handle, record.payload, record.t_ns
            if kind == Kind.MANY:
                kind, handles, payloads = payload
                records += [(Kind(kind), *event) for event in zip(handles, payloads, strict=True)]
            else:
                records.append((Kind(kind), handle, payload))
            self.last_ns = t_ns
        return records

    def by_kind(self):
        """Return {kind: [(handle, payload), …]} of ``take``; fails if the integration counted an error."""
        found = {kind: [] for kind in Kind}
        for kind, handle, payload in self.take():
            found[kind].append((handle, payload))
        assert not self.recorder.errors, self.recorder.errors
        return found

    def counts(self):
        """Return how many records there are of each kind that occurs."""
        return {kind: len(found) for kind, found in self.by_kind().items() if found}


class _NoDrainer:
    def start(self):
        pass

    def flush(self, timeout_s):
        return True

    def stop(self, timeout_s):
        return True

    def forget(self):
        pass

    def ship_here(self):
        return 2**63


@pytest.fixture
def recorded(monkeypatch):
    """What the integration records: the real recorder, whose records nobody ships."""
    recorder = get_recorder()
    before = recorder.redirect(lambda _: _NoDrainer())
    monkeypatch.setattr(recorder, "errors", Counter())
    held = Recorded(recorder)
    held.take()
    yield held
    held.take()
    recorder.redirect(before)


@pytest.fixture(scope="session")
def hf():
    """The transformers module, quiet, with torch on one thread."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return transformers


@pytest.fixture(scope="session")
def tokenizer(hf):
    """A tokenizer of whole words that knows chats and pads on the left."""
    tokenizers = importlib.import_module("tokenizers")
    fillers = [f"w{n}" for n in range(VOCAB - len(SPECIALS) - len(WORDS))]
    vocabulary = {word: n for n, word in enumerate([*SPECIALS, *WORDS, *fillers])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIALS, strict=True))
    made = hf.PreTrainedTokenizerFast(tokenizer_object=backend, padding_side="left", **names)
    made.chat_template = CHAT
    return made


@pytest.fixture(scope="session")
def llama_made(hf):
    """A Llama of two layers with random weights; not to be changed."""
    config = hf.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _seeded(lambda: hf.LlamaForCausalLM(config))


@pytest.fixture(scope="session")
def bert_made(hf):
    """A BERT classifier of one layer with random weights; not to be changed."""
    config = hf.BertConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        num_labels=3,
        pad_token_id=0,
    )
    return _seeded(lambda: hf.BertForSequenceClassification(config))


@pytest.fixture
def t5(hf):
    """A tiny encoder-decoder with random weights."""
    config = hf.T5Config(
        vocab_size=VOCAB,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    )
    return _seeded(lambda: hf.T5ForConditionalGeneration(config))


@pytest.fixture
def llama(llama_made):
    """A tiny causal LM of one's own."""
    return copy.deepcopy(llama_made)


@pytest.fixture
def bert(bert_made):
    """A tiny classifier of one's own."""
    return copy.deepcopy(bert_made)


@pytest.fixture
def generator(hf, llama, tokenizer):
    """A text-generation pipeline, greedy, six new tokens."""
    return hf.pipeline("text-generation", llama, tokenizer=tokenizer, max_new_tokens=6, do_sample=False)


@pytest.fixture
def classifier(hf, bert, tokenizer):
    """A text-classification pipeline."""
    return hf.pipeline("text-classification", bert, tokenizer=_without_types(tokenizer))


@pytest.fixture
def embedder(hf, bert, tokenizer):
    """A feature-extraction pipeline over the classifier's encoder."""
    return hf.pipeline("feature-extraction", bert.bert, tokenizer=_without_types(tokenizer))


def _without_types(tokenizer):
    made = copy.deepcopy(tokenizer)
    made.model_input_names = ["input_ids", "attention_mask"]
    return made


def _seeded(make):
    torch = importlib.import_module("torch")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()
