"""Every way to give a pipeline its inputs: the answers stay, nothing is read ahead, and no request is lost."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

import axonize_hf
from axonize_core.frames import Kind

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TEXTS = ["the model served this", "a b", "one of our gpus on the model"]
LENGTHS = [4, 2, 7]
forking = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


class Rows(torch.utils.data.Dataset):
    """A data set of texts, or of rows with a text each, that notes what was read."""

    def __init__(self, make=str):
        self.make = make
        self.read = []

    def __len__(self):
        return len(TEXTS)

    def __getitem__(self, index):
        self.read.append(index)
        return self.make(TEXTS[index])


def requests(found):
    """Return the input tokens of the requests, in the order in which they ended; all that began have ended."""
    assert {seq for seq, _ in found[Kind.REQUEST]} == {seq for seq, _ in found[Kind.REQUEST_END]}
    return [payload[1] for _, payload in found[Kind.REQUEST_END]]


def rows(_):
    return Rows()


def keyed(hf):
    return hf.pipelines.pt_utils.KeyDataset(Rows(lambda text: {"text": text, "label": 1}), "text")


def pairs(_):
    return [{"text": text, "text_pair": "a"} for text in TEXTS]


def lazily(_):
    return (text for text in TEXTS)


@forking
@pytest.mark.parametrize("make", [rows, keyed, pairs, lazily])
@pytest.mark.parametrize("options", [{}, {"batch_size": 2}, {"num_workers": 1}, {"num_workers": 2, "batch_size": 2}])
def test_answers_are_identical(make, options, hf, classifier, recorded):
    """Data sets, pairs and generators, with and without worker processes: one request per item, in their order."""
    expected = list(classifier(make(hf), **options))
    axonize_hf.instrument(classifier)
    assert list(classifier(make(hf), **options)) == expected
    assert requests(recorded.by_kind()) == [n + (make is pairs) for n in LENGTHS]


@forking
@pytest.mark.parametrize("num_workers", [0, 1])
def test_generation_from_a_generator(num_workers, generator, recorded):
    """Tokens are counted per item too where they were prepared elsewhere."""
    expected = list(generator(lazily(None)))
    results = axonize_hf.instrument(generator)(lazily(None), num_workers=num_workers, batch_size=2)
    assert len(list(results)) == len(expected)
    found = recorded.by_kind()
    assert requests(found) == LENGTHS
    assert [len(payload[1]) for _, payload in found[Kind.RUN]] == [2, 1]
    assert all(1 <= payload[2] <= 6 for _, payload in found[Kind.REQUEST_END])


def test_data_sets_are_read_when_asked(classifier, recorded):
    """Nothing is read or recorded ahead of what was asked for."""
    data = Rows()
    results = iter(axonize_hf.instrument(classifier)(data))
    assert (data.read, recorded.take()) == ([], [])
    next(results)
    assert data.read == [0]
    assert requests(recorded.by_kind()) == LENGTHS[:1]


def test_unbounded_generators(classifier, recorded):
    """Of endless input only what was pulled is a request; dropping the results in a batch ends the rest as unknown."""
    pulled = []

    def endless():
        for n in itertools.count():
            pulled.append(n)
            yield TEXTS[n % 3]

    results = iter(axonize_hf.instrument(classifier)(endless(), batch_size=4))
    for _ in range(6):
        next(results)
    del results
    found = recorded.by_kind()
    assert len(pulled) == len(found[Kind.REQUEST]) == len(found[Kind.REQUEST_END]) == 8
    assert [payload[3] for _, payload in found[Kind.REQUEST_END]] == [None] * 8


def test_an_item_that_fails_leaves_the_others(classifier, recorded):
    """Whoever goes on after an item failed gets the next ones; only the failed one is an error."""
    axonize_hf.instrument(classifier)
    results, answers = iter(classifier(given for given in (TEXTS[0], 5, TEXTS[1]))), []
    for _ in range(3):
        with suppress(ValueError, StopIteration):
            answers.append(next(results))
    found = recorded.by_kind()
    assert [payload[3] for _, payload in found[Kind.REQUEST_END]][:2] == [None, "ValueError"]
    assert len(answers) == len(found[Kind.REQUEST]) - 1


def test_nothing_to_do(classifier, recorded):
    """An empty data set has no answers and makes no requests."""
    axonize_hf.instrument(classifier)
    assert list(classifier(torch.utils.data.Subset(Rows(), []))) == []
    assert recorded.take() == []


def test_an_empty_list(classifier, recorded):
    """An empty list is no request where it is answered, and a failed one where transformers fails."""

    def ask():
        try:
            return classifier([])
        except Exception as error:
            return type(error).__name__

    expected = ask()
    axonize_hf.instrument(classifier)
    assert ask() == expected
    ends = [payload[3] for _, payload in recorded.by_kind()[Kind.REQUEST_END]]
    assert ends == ([] if expected == [] else [expected])


def test_a_call_that_fails_at_once(generator, recorded):
    """A call that is refused before any item was looked at is one failed request, of the caller's context."""
    axonize_hf.instrument(generator)
    with axonize_hf.request(request_id="r"), pytest.raises(ValueError, match="return_full_text"):
        generator(TEXTS, return_text=True, return_full_text=True)
    found = recorded.by_kind()
    assert [payload[2] for _, payload in found[Kind.REQUEST]] == ["r"]
    assert [payload[3] for _, payload in found[Kind.REQUEST_END]] == ["ValueError"]


def test_a_call_that_fails_at_its_first_answer(classifier, recorded):
    """An answer that cannot be shaped ends the call; what was not looked at yet is no request."""
    axonize_hf.instrument(classifier)
    with pytest.raises(ValueError, match="function_to_apply"):
        classifier(TEXTS, function_to_apply=3)
    assert [payload[3] for _, payload in recorded.by_kind()[Kind.REQUEST_END]] == ["ValueError"]


@forking
def test_an_item_that_fails_in_a_worker(classifier, recorded):
    """What a worker process could not prepare fails the call, and is a failed request."""
    axonize_hf.instrument(classifier)
    with pytest.raises(ValueError, match="DataLoader worker"):
        classifier([TEXTS[0], 5], num_workers=1)
    ends = [payload[3] for _, payload in recorded.by_kind()[Kind.REQUEST_END]]
    assert ends.count("ValueError") == 1
    assert len(ends) <= 2


@pytest.fixture
def nested(hf, classifier, embedder):
    """A classifier that asks another pipeline while it prepares an input."""

    class Asking(hf.TextClassificationPipeline):
        def preprocess(self, inputs, **options):
            assert len(embedder(inputs)[0]) == len(inputs.split())
            return super().preprocess(inputs, **options)

    return Asking(model=classifier.model, tokenizer=classifier.tokenizer), embedder


def test_a_pipeline_within_a_pipeline(nested, recorded):
    """The inner pipeline's requests are its own, and serve the item that was being prepared."""
    outer, inner = nested
    expected = outer(TEXTS, batch_size=3)
    axonize_hf.instrument(inner, model_name="inner")
    axonize_hf.instrument(outer, model_name="outer")
    given = [axonize_hf.RequestContext(f"r{n}") for n in range(3)]
    with axonize_hf.requests(given):
        assert outer(TEXTS, batch_size=3) == expected
    found = recorded.by_kind()
    names = [(payload[4], payload[2]) for _, payload in found[Kind.REQUEST]]
    assert names == [(kind, f"r{n}") for n in range(3) for kind in ("classification", "embeddings")]
    assert [len(payload[1]) for _, payload in found[Kind.RUN]] == [1, 1, 1, 3]
    assert len(found[Kind.REQUEST_END]) == 6


def test_threads_share_a_pipeline(classifier, recorded):
    """Calls in several threads keep their own items, contexts and runs apart."""
    expected = list(classifier(lazily(None)))
    axonize_hf.instrument(classifier)
    together = threading.Barrier(4)

    def serve(name):
        together.wait(10)
        with axonize_hf.request(request_id=name):
            return [list(classifier(lazily(None), batch_size=size)) for size in (1, 1, 3)]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(serve, "abcd"))
    for batches in answers:
        assert batches[0] == batches[1] == expected
    found = recorded.by_kind()
    names = {seq: payload[2] for seq, payload in found[Kind.REQUEST]}
    assert sorted(names.values()) == sorted("abcd" * 9)
    assert sorted(requests(found)) == sorted(LENGTHS * 12)
    assert all(len({names[seq] for seq in payload[1]}) == 1 for _, payload in found[Kind.RUN])


def test_asyncio_executors(classifier, recorded):
    """An asyncio server that hands calls to threads keeps each request's context with ``to_thread``."""
    axonize_hf.instrument(classifier)

    async def handle(name):
        with axonize_hf.request(request_id=name):
            return await asyncio.to_thread(classifier, TEXTS[0])

    async def serve():
        return await asyncio.gather(*(handle(name) for name in "abc"))

    assert len(asyncio.run(serve())) == 3
    found = recorded.by_kind()
    assert sorted(payload[2] for _, payload in found[Kind.REQUEST]) == ["a", "b", "c"]
    assert requests(found) == LENGTHS[:1] * 3


SPAWNED = """
if __name__ == "__main__":
    import pickle, sys, torch, axonize_hf
    from axonize_core.testing import capture_events
    torch.multiprocessing.set_start_method("spawn")
    pipe = pickle.load(sys.stdin.buffer)
    plain = pipe({texts!r})
    axonize_hf.instrument(pipe)
    with capture_events() as seen:
        assert pipe({texts!r}, num_workers=1) == plain
    print([event.input_tokens for event in seen.requests])
"""


def test_spawned_workers(classifier, tmp_path):
    """Workers that are spawned get the plain pipeline by pickle, and their items are requests."""
    script = tmp_path / "serve.py"
    script.write_text(SPAWNED.format(texts=TEXTS))
    ran = subprocess.run(
        [sys.executable, script], check=False, input=pickle.dumps(classifier), capture_output=True, timeout=240
    )
    assert (ran.returncode, ran.stdout.decode()) == (0, f"{LENGTHS}\n"), ran.stderr.decode()
