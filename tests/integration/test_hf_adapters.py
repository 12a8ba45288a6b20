"""Models inside something else: PEFT adapters in either order, several at once, and the wrappers of torch."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest

import axonize_hf
from axonize_core.attributes import ADAPTERS
from axonize_core.frames import Kind
from axonize_core.testing import capture_events

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # accelerate and PEFT have some of their own
    peft = pytest.importorskip("peft")

# What PEFT warns of is between it and transformers.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 5, 6, 7], [5, 6, 7, 8, 9, 10, 5, 6, 7]])
GREEDY = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": 63}


def lora_config():
    targets = ["q_proj", "v_proj"]
    return peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets, init_lora_weights=False)


def lora(model):
    return peft.get_peft_model(model, lora_config(), adapter_name="one").eval()


def prompt(model):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    return peft.get_peft_model(model, config, adapter_name="one").eval()


def generate(model, **options):
    return model.generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), **GREEDY, **options)


def adapters(seen):
    return [dict(event.attributes).get(ADAPTERS) for event in seen.requests]


@pytest.mark.parametrize("make", [lora, prompt])
def test_an_adapted_model_is_recorded(make, llama):
    """An instrumented PEFT model answers the same, names its adapter, and counts each step once; then it is as before."""
    adapted = make(llama)
    plain = generate(adapted)
    kept = dict(vars(adapted))
    assert axonize_hf.instrument(adapted) is adapted
    axonize_hf.instrument(adapted)
    with capture_events() as seen:
        assert torch.equal(generate(adapted), plain)
        generate(copy.deepcopy(adapted))
    assert (adapters(seen), len(seen.batches)) == ([["one"]] * 2, 5)
    axonize_hf.uninstrument(adapted)
    assert type(llama).__mro__[1].__name__ == "LlamaPreTrainedModel"
    assert vars(adapted) == kept
    with capture_events() as seen:
        assert torch.equal(generate(adapted), plain)
    assert seen.requests == []


@pytest.mark.parametrize("make", [lora, prompt])
def test_adapters_on_an_instrumented_model(make, llama):
    """A model that gets its adapters after it was instrumented is recorded the same."""
    adapted = make(axonize_hf.instrument(llama))
    with capture_events() as seen:
        generate(adapted)
    assert (adapters(seen), len(seen.batches)) == ([["one"]] * 2, 5)


def test_the_adapter_of_each_row(llama):
    """Rows that different adapters answer name their own; none is named where none answers."""
    adapted = axonize_hf.instrument(lora(llama))
    adapted.add_adapter("two", lora_config())
    beams = {"num_beams": 2, "num_return_sequences": 2}
    for options, expected in (
        ({}, [["one"], ["one"]]),
        ({"adapter_names": ["one", "two"]}, [["one"], ["two"]]),
        ({"adapter_names": ["__base__", "two"], **beams}, [None, ["two"]]),
    ):
        with capture_events() as seen:
            generate(adapted, **options)
        assert adapters(seen) == expected
    adapted.set_adapter("two")
    with capture_events() as seen:
        generate(adapted)
        with adapted.disable_adapter():
            generate(adapted)
    assert adapters(seen) == [["two"], ["two"], None, None]


def test_a_pipeline_of_an_adapted_model(hf, llama, tokenizer):
    """A pipeline's requests name the adapter too."""
    pipe = axonize_hf.instrument(hf.pipeline("text-generation", lora(llama), tokenizer=tokenizer))
    with capture_events() as seen:
        pipe("the model", max_new_tokens=3, do_sample=False)
    assert adapters(seen) == [["one"]]
    axonize_hf.uninstrument(pipe)
    assert generate(pipe.model).shape[0] == 2


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, functools.partial(torch.compile, backend="eager")])
def test_wrappers_of_torch(wrap, llama, recorded):
    """The model inside a wrapper is what is recorded, and given back."""
    plain = generate(llama)
    wrapped = wrap(llama)
    assert axonize_hf.instrument(wrapped) is wrapped
    assert torch.equal(generate(llama), plain)
    assert recorded.counts()[Kind.REQUEST] == 2
    axonize_hf.uninstrument(wrapped)
    generate(llama)
    assert recorded.take() == []
