"""What comes out at the agent's end when a real tiny model serves: requests, phases and batches that add up."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

import axonize_hf
from axonize_core.testing import capture_events

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

PROMPTS = ["the model served this", "a b", "one of our gpus on the model"]
PARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


def test_a_batch_of_three(generator, tokenizer):
    """Three items in one batch: each a request with its prefill and decode, and one batch event per step."""
    axonize_hf.instrument(generator, model_name="tiny", service_name="test")
    with capture_events() as seen:
        generator(PROMPTS, batch_size=3, eos_token_id=[])
    assert [event.input_tokens for event in seen.requests] == [len(tokenizer(p)["input_ids"]) for p in PROMPTS]
    for event in seen.requests:
        assert (event.output_tokens, event.finish_reason, event.error) == (6, "length", None)
        assert (event.source.model, event.source.service_name, event.source.engine) == ("tiny", "test", "transformers")
        assert 0 <= event.queue_ns < event.ttft_ns < event.duration_ns
        assert not event.incomplete
    seqs = tuple(event.ref.seq for event in seen.requests)
    assert [event.request_seqs for event in seen.batches] == [seqs] * 6
    assert [event.decode_tokens for event in seen.batches] == [(0, 0, 0)] + [(1, 1, 1)] * 5
    assert seen.batches[0].prefill_tokens == tuple(event.input_tokens for event in seen.requests)
    assert [event.tokens for event in seen.decodes] == [6] * 3
    for prefill, decode in zip(seen.prefills, seen.decodes, strict=True):
        assert prefill.start_ns + prefill.duration_ns == decode.start_ns


def test_the_callers_trace_is_continued(llama):
    """A request joins the trace its server names, and starts when its server says that it arrived."""
    axonize_hf.instrument(llama)
    arrived_ns = time.perf_counter_ns() - 50_000_000
    with (
        capture_events() as seen,
        axonize_hf.request(request_id="r-1", traceparent=PARENT, arrived_ns=arrived_ns, attributes={"tier": "gold"}),
    ):
        llama.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
    (event,) = seen.requests
    assert (event.ref.trace_id, event.parent_span_id) == (int("ab" * 16, 16), int("cd" * 8, 16))
    assert (event.request_id, event.attributes) == ("r-1", (("tier", "gold"),))
    assert event.queue_ns >= 50_000_000


@pytest.mark.parametrize("options", [
    {"num_beams": 3}, {"prompt_lookup_num_tokens": 2}, {"prefill_chunk_size": 2}, {"use_cache": False},
])  # fmt: skip
def test_every_mode_makes_phases(options, llama):
    """Beams, speculation and chunks give one request with a prefill and a decode; nothing is an orphan."""
    axonize_hf.instrument(llama)
    with capture_events() as seen:
        llama.generate(torch.tensor([[5, 6, 7, 5, 6, 7]]), max_new_tokens=5, do_sample=False, **options)
    (event,) = seen.requests
    assert event.ttft_ns > 0
    assert (len(seen.prefills), len(seen.decodes)) == (1, 1)
    assert sum(batch.prefill_tokens[0] for batch in seen.batches) == 6
    assert seen.prefills[0].steps == (3 if "prefill_chunk_size" in options else 1)


def test_encoders(classifier):
    """A classification is a request with a prefill that is its forward, no decode, and one batch of one step."""
    axonize_hf.instrument(classifier)
    with capture_events() as seen:
        classifier(PROMPTS, batch_size=3)
    assert [(event.operation, event.output_tokens) for event in seen.requests] == [("classification", None)] * 3
    assert (len(seen.prefills), len(seen.decodes), len(seen.batches)) == (3, 0, 1)
    assert seen.prefills[0].duration_ns == seen.batches[0].duration_ns


def test_errors(llama):
    """A failed request says its error and has the phases it got to."""
    axonize_hf.instrument(llama)
    steps = []

    def fail(ids, scores, **kwargs):
        steps.append(ids)
        if len(steps) == 3:
            raise ConnectionResetError
        return torch.zeros(len(ids), dtype=torch.bool)

    with capture_events() as seen, pytest.raises(ConnectionResetError):
        llama.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=9, do_sample=False, stopping_criteria=[fail])
    (event,) = seen.requests
    assert (event.finish_reason, event.error) == ("error", "ConnectionResetError")
    assert (len(seen.prefills), len(seen.batches)) == (1, 3)


def test_switched_off_from_outside(tmp_path):
    """With AXONIZE_DISABLED or OTEL_SDK_DISABLED an object comes back untouched, whatever it is."""
    code = "import axonize_hf; x = object(); assert axonize_hf.instrument(x) is x"
    for name in ("AXONIZE_DISABLED", "OTEL_SDK_DISABLED"):
        subprocess.run([sys.executable, "-c", code], env=_env(tmp_path) | {name: "true"}, check=True)


def test_importing_is_light(tmp_path):
    """Importing the integration imports neither torch nor transformers, nor what belongs in the agent."""
    heavy = "{'torch', 'transformers', 'pluggy', 'opentelemetry', 'pynvml'}"
    code = f"import sys, axonize_hf; assert not {heavy} & set(sys.modules), sys.modules"
    subprocess.run([sys.executable, "-c", code], env=_env(tmp_path), check=True)


def _env(home):
    return {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
