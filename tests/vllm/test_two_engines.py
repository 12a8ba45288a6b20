"""Two servers on one machine, with one agent: nothing of one is taken for the other's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

import vllm_load
import vllm_sums

NAMES = ("left", "right")


def questions(name):
    """Return the same request ids and prompts for both; a KV cache of each shows in what it finds there."""
    asked = [{"prompt": [20 + k % 3] * 100, "max_tokens": 30, "model": name} for k in range(40)]
    return [{"request_id": f"same-{k}", **question} for k, question in enumerate(asked)]


@pytest.fixture(scope="module")
def served(serve, module_capture):
    """Both servers and the answers of each, asked at the same time."""
    room = ("--block-size", "32", "--num-gpu-blocks-override", "80")
    with (
        serve(*room, "--served-model-name", "left", capture=module_capture) as left,
        serve(*room, "--served-model-name", "right", beside=left) as right,
        ThreadPoolExecutor() as clients,
    ):
        servers = dict(zip(NAMES, (left, right), strict=True))
        loads = {
            name: clients.submit(vllm_load.run, server.base_url, questions(name), 8) for name, server in servers.items()
        }
        answers = {name: load.result() for name, load in loads.items()}
        vllm_sums.settle(left.surroundings)
        vllm_sums.check_agent(left.surroundings)
        assert len(left.surroundings.agents()) == 1
        yield servers, answers, vllm_sums.check(module_capture.phases)


def test_each_request_is_its_own_engines(served):
    """The same ids from the callers of both: told apart by model, engine and process, with the API's facts."""
    _, answers, stories = served
    for name in NAMES:
        own = [s for s in stories if s["gen_ai.request.model"] == name]
        vllm_sums.check_answers(own, answers[name])
        assert len({s.span.resource["ai.engine.id"] for s in own}) == 1
        assert len({s.span.resource["service.instance.id"] for s in own}) == 1
        assert len({s["ai.frontend.instance.id"] for s in own}) == 1
    assert len(stories) == 80
    assert len({s.span.resource["ai.engine.id"] for s in stories}) == 2
    assert len({s["ai.frontend.instance.id"] for s in stories}) == 2


def test_steps_have_members_of_one_engine(served):
    """Each step is of one model, and its members of the same: the sums were held by process and number."""
    _, _, stories = served
    for story in stories:
        models = {part.batch.resource["gen_ai.request.model"] for part in story.parts}
        assert models == {story["gen_ai.request.model"]}
