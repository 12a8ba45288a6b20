"""An instrumented object stays what it is: its class's name, its copies, its compiled forms, its children."""

from __future__ import annotations

import asyncio
import copy
import functools
import io
import os
import pickle

import pytest

import axonize_hf
from axonize_core.frames import Kind

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 5, 6, 7], [0, 0, 0, 0, 11, 12, 13, 14, 15]])
MASK = (IDS != 0).long()
GREEDY = {"max_new_tokens": 7, "do_sample": False}


def generate(model, ids=IDS, **options):
    return model.generate(ids, attention_mask=(ids != 0).long(), **options)


def test_the_object_stays_what_it_is(llama, recorded, tmp_path):
    """Same object, same class name, isinstance holds, and a second instrument changes nothing."""
    cls = type(llama)
    assert axonize_hf.instrument(llama) is llama
    swapped = type(llama)
    assert axonize_hf.instrument(llama) is llama
    assert type(llama) is swapped
    assert isinstance(llama, cls)
    assert (swapped.__name__, swapped.__module__, swapped.__qualname__) == (
        cls.__name__,
        cls.__module__,
        cls.__qualname__,
    )
    assert llama.can_generate()
    llama.save_pretrained(tmp_path)
    assert f'"{cls.__name__}"' in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle", "torch.save"])
def test_copies_are_plain_and_their_own(how, llama, recorded):
    """Copies and pickles are of the original class, run their own weights and record nothing."""
    axonize_hf.instrument(llama)
    twin = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": _pickled, "torch.save": _saved}[how](llama)
    assert type(twin) is type(llama).__mro__[1]
    if how != "copy":
        with torch.no_grad():
            twin.lm_head.weight.zero_()
        assert set(generate(twin, IDS[:1], **GREEDY)[0, 9:].tolist()) == {0}
        assert set(generate(llama, IDS[:1], **GREEDY)[0, 9:].tolist()) != {0}
        assert recorded.counts()[Kind.REQUEST] == 1


def _pickled(model):
    return pickle.loads(pickle.dumps(model))


def _saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_uninstrument_restores_the_class(llama, recorded):
    """After uninstrument the object has its own class again and records nothing; a second time does nothing."""
    cls = type(llama)
    assert axonize_hf.uninstrument(axonize_hf.instrument(llama)) is llama
    assert type(axonize_hf.uninstrument(llama)) is cls
    generate(llama, **GREEDY)
    assert recorded.take() == []


def test_custom_generate_on_the_instance(llama, recorded):
    """A generate set on the instance is recorded, copied as itself, and given back by uninstrument."""
    original = functools.partial(type(llama).generate, llama)
    llama.generate = original
    axonize_hf.instrument(llama)
    generate(llama, **GREEDY)
    assert recorded.counts()[Kind.REQUEST] == 2
    assert isinstance(copy.deepcopy(llama).generate, functools.partial)
    assert isinstance(pickle.loads(pickle.dumps(llama)).generate, functools.partial)
    assert axonize_hf.uninstrument(llama).generate is original


def test_compile_sees_nothing_of_ours(llama, bert, recorded):
    """A compiled forward has no graph break: decode steps and compiled encoders run fullgraph, events intact."""
    plain = generate(llama, IDS[:1], **GREEDY)
    axonize_hf.instrument(llama)
    llama.forward = torch.compile(llama.forward, backend="eager", fullgraph=True)
    compiled = generate(llama, IDS[:1], **GREEDY, cache_implementation="static", disable_compile=True)
    assert torch.equal(plain, compiled)
    assert len(recorded.by_kind()[Kind.RUN][0][1][-1]) - 1 == 7
    encoder = torch.compile(axonize_hf.instrument(bert), backend="eager", fullgraph=True)
    expected = bert(input_ids=IDS, attention_mask=MASK).logits
    assert torch.allclose(encoder(input_ids=IDS, attention_mask=MASK).logits, expected)
    recorded.take()
    bert.compile(backend="eager", fullgraph=True)
    assert torch.allclose(bert(input_ids=IDS, attention_mask=MASK).logits, expected)
    assert recorded.counts() == {Kind.REQUEST: 2, Kind.RUN: 1, Kind.RUN_END: 1, Kind.REQUEST_END: 2}


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_records_its_own(llama, recorded):
    """A child forked after instrumenting generates and records for itself; the parent's records are not its."""
    axonize_hf.instrument(llama)
    generate(llama, IDS[:1], **GREEDY)
    pid = os.fork()
    if pid == 0:
        ok = False
        try:
            generate(llama, IDS[:1], **GREEDY)
            ok = recorded.counts() == {Kind.REQUEST: 1, Kind.RUN: 1, Kind.RUN_END: 1, Kind.REQUEST_END: 1}
        finally:
            os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert recorded.counts()[Kind.REQUEST] == 1


def test_uninstrument_leaves_nothing(llama, recorded):
    """After uninstrument the object holds what it held, and copies, pickles and compiles as if nothing had been."""
    cls, kept, plain = type(llama), dict(vars(llama)), generate(llama, **GREEDY)
    axonize_hf.instrument(llama)
    generate(llama, **GREEDY)
    axonize_hf.uninstrument(llama)
    recorded.take()
    assert (type(llama), vars(llama)) == (cls, kept)
    for twin in (llama, copy.deepcopy(llama), _pickled(llama), _saved(llama)):
        assert type(twin) is cls
        assert torch.equal(generate(twin, **GREEDY), plain)
    compiled = torch.compile(llama, backend="eager", fullgraph=True)
    assert torch.equal(compiled(IDS, attention_mask=MASK).logits, llama(IDS, attention_mask=MASK).logits)
    assert recorded.take() == []


def test_uninstrument_during_a_generate(llama, recorded):
    """A generate that is under way when its model is uninstrumented still ends its records, the next makes none."""
    axonize_hf.instrument(llama)

    def leave(ids, scores, **kwargs):
        axonize_hf.uninstrument(llama)
        return torch.zeros(len(ids), dtype=torch.bool)

    generate(llama, **GREEDY, stopping_criteria=[leave])
    generate(llama, **GREEDY)
    assert recorded.counts() == {Kind.REQUEST: 2, Kind.RUN: 1, Kind.RUN_END: 1, Kind.REQUEST_END: 2}


def test_asyncio_tasks_have_contexts_of_their_own(llama, recorded):
    """Tasks that let threads generate for them at once name each their own request."""
    axonize_hf.instrument(llama)

    async def serve(name):
        with axonize_hf.request(request_id=name):
            return await asyncio.to_thread(generate, llama, IDS[:1], **GREEDY)

    async def serve_all():
        return await asyncio.gather(serve("one"), serve("two"))

    one, two = asyncio.run(serve_all())
    assert torch.equal(one, two)
    found = recorded.by_kind()
    assert {payload[2] for _, payload in found[Kind.REQUEST]} == {"one", "two"}
    assert [len(payload[4]) for _, payload in found[Kind.RUN]] == [8, 8]


def test_a_context_spans_what_a_generator_yields(llama, recorded):
    """A context around a generator's steps holds for the generates made in it."""
    axonize_hf.instrument(llama)

    def answers():
        for _ in range(2):
            yield generate(llama, IDS[:1], **GREEDY)

    with axonize_hf.request(request_id="streamed"):
        assert len(list(answers())) == 2
    assert [payload[2] for _, payload in recorded.by_kind()[Kind.REQUEST]] == ["streamed"] * 2
