"""`LLM.generate` in one process and in several, and an engine whose device times are measured."""

from __future__ import annotations

import pytest

import vllm_sums

GENERATE = """
    import random
    chance = random.Random(2)
    llm = make_llm(num_gpu_blocks_override=48, block_size=32, max_num_batched_tokens=256, disable_log_stats=STATS)
    MORE
    prompts = [{"prompt_token_ids": [chance.randrange(10, 500) for _ in range(chance.choice([5, 40, 300, 700]))]}
               for _ in range(60)]
    given = [SamplingParams(max_tokens=chance.choice([1, 5, 50, 200]), ignore_eos=True, temperature=0)
             for _ in prompts]
    given[7] = SamplingParams(max_tokens=50, n=2, temperature=1.0, ignore_eos=True)
    answers = llm.generate(prompts, given, use_tqdm=False)
    report([[len(a.prompt_token_ids), len(c.token_ids), c.finish_reason] for a in answers for c in a.outputs])
"""

DEVICE = """
    import time
    from axonize_core.recorder import get_recorder
    from axonize_vllm.source import engine_id
    from axonize_vllm.step_times import StepTimes
    from axonize_vllm.worker import time_steps

    class Event:  # as torch.cuda.Event(enable_timing=True), of a device that is never behind
        def record(self):
            self.time_s = time.perf_counter()
        def query(self):
            return True
        def elapsed_time(self, end):
            return (end.time_s - self.time_s) * 1e3

    worker = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker
    time_steps(worker, StepTimes(get_recorder(), engine_id(worker.vllm_config), Event))
"""


def generate(offline, capture, *, more="", statistics=True, **env):
    """Generate 61 answers under preemption, hold all sums, and return the requests and what the API said."""
    code = GENERATE.replace("    MORE\n", more).replace("STATS", str(not statistics))
    told = offline(code, env=env)
    capture.wait_for(len(told))
    stories = vllm_sums.check(capture.phases)
    assert sorted([s["gen_ai.usage.input_tokens"], s.output_tokens, s.finish_reason] for s in stories) == sorted(told)
    assert sum(s["ai.preemptions"] or 0 for s in stories) > 0
    assert {s["ai.finish_reason.provenance"] for s in stories} == {"frontend"}
    return stories


@pytest.mark.parametrize("several", ["0", "1"])
def test_generate_is_recorded(offline, capture, several):
    """Engine and front end in one process, and each in its own."""
    stories = generate(offline, capture, VLLM_ENABLE_V1_MULTIPROCESSING=several)
    instances = {(s.span.resource["service.instance.id"], s["ai.frontend.instance.id"]) for s in stories}
    ((engine, front_end),) = instances
    assert (engine != front_end) == (several == "1")


def test_device_times_are_those_of_each_step(offline, capture):
    """Each step has one, of its own: within what it took to execute. The marks are made up, the CPU has none."""
    generate(offline, capture, more=DEVICE, statistics=False, AXONIZE_VLLM_DEVICE_TIME="1")
    for batch in capture.of("batch"):
        assert 0 < batch["ai.device_time_ms"] <= batch["ai.batch.execute_ms"], batch
        assert batch["ai.device_time.provenance"] == "cuda_events"


def test_what_is_not_asked_for_leaves_no_trace(offline, capture, tmp_path):
    """No agent, no file, no span."""
    answer = offline('report(len(make_llm().generate(["hello"], SamplingParams(max_tokens=2))))', axonize=False)
    assert answer == 1
    assert (capture.requests, list((tmp_path / "run").glob("*"))) == ([], [])
    assert not (tmp_path / "state").exists()
