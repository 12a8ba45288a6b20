"""Real pipelines, instrumented: the same answers, one request per item, one run per forward."""

from __future__ import annotations

import copy
import pickle
import time

import pytest

import axonize_hf
from axonize_core.frames import Kind
from axonize_hf.session import Session, Stage

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

PROMPTS = ["the model served this", "a b", "one of our gpus on the model"]
CHAT = [{"role": "user", "content": "the model"}]


def members(found):
    return [len(payload[1]) for _, payload in found[Kind.RUN]]


@pytest.mark.parametrize("name", ["generator", "classifier", "embedder"])
@pytest.mark.parametrize(("given", "options", "runs"), [
    (PROMPTS[0], {}, [1]),
    (PROMPTS, {}, [1, 1, 1]),
    (PROMPTS, {"batch_size": 2}, [2, 1]),
])  # fmt: skip
def test_answers_are_identical(name, given, options, runs, request, recorded):
    """Single, listed and batched inputs get the same answers; an item is a request, a forward is a run."""
    pipe = request.getfixturevalue(name)
    plain = pipe(given, **options)
    assert axonize_hf.instrument(pipe)(given, **options) == plain
    found = recorded.by_kind()
    assert members(found) == runs
    assert len(found[Kind.RUN_END]) == len(runs)
    seqs = [seq for seq, _ in found[Kind.REQUEST]]
    assert len(seqs) == sum(runs)
    assert [seq for seq, _ in found[Kind.REQUEST_END]] == seqs
    assert [seq for _, payload in found[Kind.RUN] for seq in payload[1]] == seqs


def test_generation_is_told_by_item(generator, recorded, tokenizer):
    """Tokens are counted per item without padding, up to the end token, in a batch padded on the left."""
    tokens = [answer[0]["generated_token_ids"] for answer in generator(PROMPTS, return_tensors=True)]
    lengths = [len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS]
    rows = [row[n:] for row, n in zip(tokens, lengths, strict=True)]
    end = rows[0][2]
    axonize_hf.instrument(generator)(PROMPTS, batch_size=3, eos_token_id=end)
    found = recorded.by_kind()
    ((_, (_, _, prompt_tokens, mode, _)),) = found[Kind.RUN]
    assert (list(prompt_tokens), mode) == (lengths, "generate")
    expected = [
        ("stop", n, row.index(end) + 1) if end in row else ("length", n, 6)
        for row, n in zip(rows, lengths, strict=True)
    ]
    assert [payload[:3] for _, payload in found[Kind.REQUEST_END]] == expected
    assert expected[0][0] == "stop"


def test_operations(generator, classifier, embedder, recorded):
    """Each task reports its own operation, and a conversation is a chat."""
    for pipe in (generator, classifier, embedder):
        axonize_hf.instrument(pipe)(PROMPTS[0])
    generator(CHAT)
    generator([CHAT, CHAT])
    operations = [payload[4] for _, payload in recorded.by_kind()[Kind.REQUEST]]
    assert operations == ["text_completion", "classification", "embeddings", "chat", "chat", "chat"]


def test_encoders_generate_nothing(classifier, recorded):
    """A classification is one forward without tokens, and its request ends without a finish reason."""
    axonize_hf.instrument(classifier)(PROMPTS[1])
    found = recorded.by_kind()
    ((_, (_, _, prompt_tokens, mode, times)),) = found[Kind.RUN]
    assert (prompt_tokens, mode, len(times)) == ((2,), "forward", 1)
    assert [payload for _, payload in found[Kind.REQUEST_END]] == [(None, 2, None, None, None)]


def test_listed_items_arrive_with_the_call(classifier, recorded):
    """Every item of a list has waited since the call, however late its turn comes."""
    axonize_hf.instrument(classifier)
    before = time.perf_counter_ns()
    classifier(PROMPTS)
    arrivals = {payload[1] for _, payload in recorded.by_kind()[Kind.REQUEST]}
    assert len(arrivals) == 1
    assert arrivals.pop() >= before


def test_generators_stay_lazy(classifier, recorded):
    """Nothing runs before the first result is asked for; each item arrives when it is pulled and ends when it is given."""
    plain = list(classifier(iter_prompts()))
    results = axonize_hf.instrument(classifier)(iter_prompts(), batch_size=2)
    assert recorded.take() == []
    asked = time.perf_counter_ns()
    first = next(iter(results))
    found = recorded.by_kind()
    assert (len(found[Kind.REQUEST]), members(found), len(found[Kind.REQUEST_END])) == (2, [2], 1)
    assert all(payload[1] >= asked for _, payload in found[Kind.REQUEST])
    assert first["label"] == plain[0]["label"]


def iter_prompts():
    yield from PROMPTS


def test_interleaved_iterators_keep_their_items(generator, recorded):
    """Two lazy calls of one pipeline, pulled in turns, close their own items."""
    axonize_hf.instrument(generator)
    one, two = (iter(generator(iter_prompts(), batch_size=3)) for _ in range(2))
    next(one)
    next(two)
    mine, others = [payload[1] for _, payload in recorded.by_kind()[Kind.RUN]]
    next(two)
    next(one)
    next(two)
    assert [seq for seq, _ in recorded.by_kind()[Kind.REQUEST_END]] == [others[1], mine[1], others[2]]


def test_abandoned_items_are_closed(generator, recorded):
    """Items that nobody asks for any more end with unknown outcome, and not as errors."""
    axonize_hf.instrument(generator)
    results = iter(generator(iter_prompts(), batch_size=3))
    next(results)
    recorded.take()
    del results
    ends = recorded.by_kind()[Kind.REQUEST_END]
    assert [(payload[0], payload[2], payload[3]) for _, payload in ends] == [(None, None, None)] * 2


def test_contexts_reach_their_items(generator, recorded):
    """One context per item of a list; a single context counts for every item."""
    axonize_hf.instrument(generator)
    given = [axonize_hf.RequestContext(f"r{n}") for n in range(3)]
    with axonize_hf.requests(given):
        generator(PROMPTS, batch_size=2)
    with axonize_hf.request(request_id="all", arrived_ns=1):
        generator(PROMPTS[:2])
    found = [payload[1:3] for _, payload in recorded.by_kind()[Kind.REQUEST]]
    assert [request_id for _, request_id in found] == ["r0", "r1", "r2", "all", "all"]
    assert found[-1] == (1, "all")


def test_a_failing_item_ends_the_call_as_an_error(classifier, recorded):
    """When an item cannot be prepared, its request and those prepared with it fail with that error; the next call works."""
    axonize_hf.instrument(classifier)
    with pytest.raises(ValueError, match="invalid inputs"):
        classifier([PROMPTS[0], ["no", "text", "pair"]], batch_size=2)
    found = recorded.by_kind()
    assert found[Kind.RUN] == []
    assert [payload[0::3] for _, payload in found[Kind.REQUEST_END]] == [("error", "ValueError")] * 2
    classifier(PROMPTS)
    assert recorded.counts()[Kind.REQUEST_END] == 3


def test_a_failing_forward_ends_its_batch_as_errors(generator, classifier, recorded):
    """What forward raises passes through; its run and the requests of its batch end with it."""
    for pipe, options in ((generator, {"max_new_tokens": -1}), (classifier, {})):
        axonize_hf.instrument(pipe)
        if not options:
            pipe.model.classifier = None
        with pytest.raises((ValueError, TypeError)) as caught:
            pipe(PROMPTS[:2], batch_size=2, **options)
        found = recorded.by_kind()
        assert [payload[1] for _, payload in found[Kind.RUN_END]] == [caught.type.__name__]
        assert [payload[3] for _, payload in found[Kind.REQUEST_END]] == [caught.type.__name__] * 2


def test_a_failing_postprocess_ends_what_is_left(classifier, recorded):
    """An answer that cannot be shaped fails its item, and the items its caller will now not get."""
    axonize_hf.instrument(classifier)
    classifier._postprocess_params = {"function_to_apply": "nonsense"}
    with pytest.raises(ValueError, match="Unrecognized"):
        classifier(PROMPTS, batch_size=3)
    assert [payload[3] for _, payload in recorded.by_kind()[Kind.REQUEST_END]] == ["ValueError"] * 3


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_worker_processes_prepare_unseen(classifier, recorded):
    """Items prepared in worker processes are requests from their forward on; the answers are the same."""
    plain = classifier(PROMPTS)
    assert axonize_hf.instrument(classifier)(PROMPTS, num_workers=1) == plain
    assert recorded.counts()[Kind.REQUEST_END] == 3


def test_a_stage_sent_elsewhere_is_plain(classifier, recorded):
    """A stage pickled for a spawned worker is the plain pipeline's, without the call's session."""
    axonize_hf.instrument(classifier)
    stage = Stage(Session(classifier, 1), "preprocess", classifier.preprocess)
    sent = pickle.loads(pickle.dumps(stage))
    assert sent(PROMPTS[0])["input_ids"].tolist() == stage(PROMPTS[0])["input_ids"].tolist()
    assert recorded.counts()[Kind.REQUEST] == 1


def test_an_instrumented_encoder_inside(classifier, recorded):
    """A pipeline's items are not counted again by its model when that is instrumented too."""
    axonize_hf.instrument(classifier.model, model_name="inner")
    axonize_hf.instrument(classifier)(PROMPTS, batch_size=3)
    assert recorded.counts() == {Kind.REQUEST: 3, Kind.RUN: 1, Kind.RUN_END: 1, Kind.REQUEST_END: 3}


def test_stages_replaced_by_the_user(generator, recorded):
    """Stages set on the instance are left alone; what the model generates is recorded as its own requests."""
    axonize_hf.instrument(generator)
    generator.postprocess = lambda outputs, **_: "mine"
    assert generator(PROMPTS) == ["mine"] * 3
    found = recorded.by_kind()
    assert (members(found), len(found[Kind.REQUEST_END])) == ([1, 1, 1], 3)


def test_stages_called_directly(classifier, generator, recorded):
    """Stages outside a call work as ever; a generate in them is a request of the model's own."""
    for pipe in (classifier, generator):
        axonize_hf.instrument(pipe)
        outputs = pipe.forward(pipe.preprocess(PROMPTS[0]))
        assert pipe.postprocess(outputs)
    assert recorded.counts() == {Kind.REQUEST: 1, Kind.RUN: 1, Kind.RUN_END: 1, Kind.REQUEST_END: 1}


def test_the_pipeline_stays_what_it_is(generator, recorded):
    """In place, idempotent, plain when copied or pickled, and plain again after uninstrument."""
    cls, model_cls = type(generator), type(generator.model)
    assert axonize_hf.instrument(axonize_hf.instrument(generator)) is generator
    assert isinstance(generator, cls)
    assert type(generator).__name__ == cls.__name__
    for twin in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
        assert (type(twin), type(twin.model)) == (cls, model_cls)
    axonize_hf.uninstrument(generator)
    assert (type(generator), type(generator.model)) == (cls, model_cls)
    generator(PROMPTS)
    assert recorded.take() == []


def test_num_return_sequences(generator, recorded):
    """All sequences of an item count as its output."""
    axonize_hf.instrument(generator)(PROMPTS[:2], do_sample=True, num_return_sequences=3, eos_token_id=63, batch_size=2)
    found = recorded.by_kind()
    assert members(found) == [2]
    for _, (reason, _, tokens, _, _) in found[Kind.REQUEST_END]:
        assert 3 <= tokens <= 18
        assert reason == "length" or tokens < 18
