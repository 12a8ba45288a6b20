"""Steps of continuous batching as runs, read from where the library's versions keep them; with stand-ins for those."""

from __future__ import annotations

import queue
from types import SimpleNamespace

import pytest

from axonize_core.frames import Kind
from axonize_hf.continuous import instrument_manager, uninstrument_manager
from axonize_hf.continuous_steps import Steps


def member(name, prompt, before, computed):
    """A scheduled request that computes so many tokens; positions are already counted on, as the library does."""
    state = SimpleNamespace(request_id=name, initial_tokens=[0] * prompt, position_offset=before + computed)
    return SimpleNamespace(state=state, query_length=computed)


def again(batch):
    for one in batch:
        one.state.position_offset += 1
    return batch


SEQS = {"a": 7, "b": 8, "b__child#0": 8}


@pytest.fixture
def steps(recorded):
    return Steps(1, SEQS.get)


def step(steps, batch, place=None):
    place = place or SimpleNamespace(requests_in_batch=batch)
    return steps.run(SimpleNamespace(batch_processor=place), lambda: "done", (), {})


def runs(recorded):
    return [payload[1:5] for kind, _, payload in recorded.take() if kind is Kind.RUN]


def test_equal_steps_are_one_run(steps, recorded):
    """Steps that decode for the same requests share a run; a prompt, or other members, begin a new one."""
    a, b = member("a", 5, 5, 1), member("b", 5, 0, 3)
    assert step(steps, [a]) == "done"
    step(steps, again([a]))
    step(steps, [*again([a]), b])
    steps.close()
    steps.close()
    records = recorded.take()
    first, second = [payload for kind, _, payload in records if kind is Kind.RUN]
    assert first[1:5] == ((7,), (0,), "continuous", (5,))
    assert second[1:5] == ((7, 8), (0, 3), "continuous", (7, 0))
    assert [(len(payload[5]), payload[5][-1] < 0) for payload in (first, second)] == [(3, True), (2, True)]
    assert [payload for kind, _, payload in records if kind is Kind.RUN_END] == [(None, None)] * 2


def test_sequences_of_a_request_share_its_place(steps, recorded):
    """Several sequences of one request are one member; requests that are not recorded are none."""
    step(steps, [member("b", 5, 0, 5), member("b__child#0", 5, 0, 5), member("other", 5, 0, 5)])
    assert runs(recorded) == [((8,), (10,), "continuous", (0,))]
    step(steps, [member("other", 5, 5, 1)])
    assert runs(recorded) == []


def test_places_of_other_versions(steps, recorded):
    """Members are found where asynchronous batching keeps them, and without token counts where a version has none."""
    pair = SimpleNamespace(host_io=SimpleNamespace(requests_in_batch=[member("a", 5, 0, 5)]))
    place = SimpleNamespace(inputs_and_outputs=SimpleNamespace(io_pairs=[None, pair], current_pair=1))
    step(steps, None, place)
    assert runs(recorded) == [((7,), (5,), "continuous", (0,))]
    old = SimpleNamespace(request_id="a", position_offset=5)
    step(steps, [old])
    step(steps, [old])
    assert runs(recorded) == [((7,), (), "continuous", ())] * 2


def test_a_failing_step_says_so(steps, recorded):
    """What a step raises arrives unchanged and ends its run."""
    place = SimpleNamespace(requests_in_batch=[member("a", 5, 0, 5)])
    with pytest.raises(ZeroDivisionError):
        steps.run(SimpleNamespace(batch_processor=place), lambda: 1 / 0, (), {})
    assert [payload for kind, _, payload in recorded.take() if kind is Kind.RUN_END] == [(None, "ZeroDivisionError")]


class Manager:
    """An old manager: one queue in, one out, and a method that somebody replaced."""

    def __init__(self):
        self.input_queue, self.output_queue = queue.Queue(), queue.Queue()

        def add_request(state):
            self.input_queue.put(state)

        self.add_request = self.theirs = add_request

    def _generation_step(self):
        pass


def test_an_old_manager(recorded):
    """Outputs of an old version are read on their way into its queue; its methods, replaced ones too, are given back."""
    manager = Manager()
    before = dict(vars(manager))
    instrument_manager(manager, 1)
    state = SimpleNamespace(
        request_id="req_0", full_prompt_ids=[5, 6], eos_token_id=2, max_new_tokens=9, created_time=1e9
    )
    manager.add_request(state)
    part = {"request_id": "req_0", "error": None}
    manager.output_queue.put(SimpleNamespace(**part, status=SimpleNamespace(name="DECODING"), generated_tokens=[5]))
    manager.output_queue.put(SimpleNamespace(**part, status=SimpleNamespace(name="FINISHED"), generated_tokens=[5, 2]))
    assert manager.output_queue.qsize() == 2
    found = recorded.by_kind()
    ((_, opened),) = found[Kind.REQUEST]
    assert opened[1] < 10**17, "the library's stamp was of another clock"
    assert [payload for _, payload in found[Kind.REQUEST_END]] == [("stop", 2, 2, None, None, None)]
    uninstrument_manager(manager)
    assert vars(manager) == before
    assert manager.add_request is manager.theirs
