"""Engines of several processes and of other kinds: tensor and data parallel, adapters, pooling."""

from __future__ import annotations

import json
import os

import httpx
import pytest

import vllm_load
import vllm_sums

QUESTIONS = [{"prompt": [20 + k] * 60, "max_tokens": 8} for k in range(12)]


def adapter(folder, model):
    """Write a LoRA adapter of zeros for the model."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((model / "config.json").read_text())
    hidden, rank = config["hidden_size"], 8
    names = [f"base_model.model.model.layers.{k}.self_attn.q_proj" for k in range(config["num_hidden_layers"])]
    weights = {f"{name}.lora_A.weight": torch.zeros(rank, hidden) for name in names}
    weights |= {f"{name}.lora_B.weight": torch.zeros(hidden, rank) for name in names}
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="each worker is bound to a CPU of its own")
def test_tensor_parallel_workers_are_all_known(serve):
    """Two workers of one engine, of which each tells its device; requests are the engine's, told once."""
    # By itself vLLM wants a NUMA node for each worker.
    with serve("--tensor-parallel-size", "2", env={"VLLM_CPU_OMP_THREADS_BIND": "0|1"}) as server:
        assert len(server.worker_pids) == 2
        answers = vllm_load.run(server.base_url, QUESTIONS, concurrency=4)
        vllm_sums.settle(server.surroundings)
        facts = vllm_sums.agent_facts(server.surroundings)
        assert facts["processes_live"] == 4
        vllm_sums.check_agent(server.surroundings)
        stories = vllm_sums.check(server.capture.phases)
    vllm_sums.check_answers(stories, answers)
    assert {s.span.resource["ai.tensor_parallel.size"] for s in stories} == {"2"}


def test_data_parallel_ranks_are_engines_of_their_own(serve):
    """Two engine cores: each has its steps, and each request is in one of them."""
    with serve("--data-parallel-size", "2") as server:
        answers = vllm_load.run(server.base_url, QUESTIONS, concurrency=6)
        vllm_sums.settle(server.surroundings)
        vllm_sums.check_agent(server.surroundings)
        stories = vllm_sums.check(server.capture.phases)
    vllm_sums.check_answers(stories, answers)
    assert {s.span.resource["ai.engine.id"].rpartition("/")[2] for s in stories} == {"0", "1"}
    assert len({s.span.resource["service.instance.id"] for s in stories}) == 2


def test_adapters_are_named(serve, tiny, tmp_path):
    """The LoRA adapter that answered stands on its request, and on no other."""
    path = adapter(tmp_path / "adapter", tiny)
    with serve("--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"zero={path}") as server:
        asked = [{**question, "model": "zero" if k % 2 else "tiny"} for k, question in enumerate(QUESTIONS)]
        answers = vllm_load.run(server.base_url, asked, concurrency=4)
        vllm_sums.settle(server.surroundings)
        stories = vllm_sums.check(server.capture.phases)
    vllm_sums.check_answers(stories, answers)
    adapters = {s["ai.request.id"]: s["ai.adapters"] for s in stories}
    assert adapters == {f"cmpl-r-{k}-0": ["zero"] if k % 2 else None for k in range(len(asked))}


@pytest.mark.parametrize("count", [10])
def test_pooling_has_no_tokens(serve, count):
    """Embeddings: a queue and a prefill, whose tokens are the prompt's; no decode."""
    with serve("--runner", "pooling", "--convert", "embed") as server, httpx.Client(base_url=server.base_url) as client:
        for k in range(count):
            answer = client.post("/v1/embeddings", json={"model": "tiny", "input": [20 + k] * (40 + k)}, timeout=60)
            assert answer.status_code == 200, answer.text
        vllm_sums.settle(server.surroundings)
        vllm_sums.check_agent(server.surroundings)
        stories = vllm_sums.check(server.capture.phases)
    assert [s["gen_ai.usage.input_tokens"] for s in stories] == [40 + k for k in range(count)]
    assert {s["gen_ai.operation.name"] for s in stories} == {"embeddings"}
    assert {(len(s.of("prefill")), len(s.of("decode")), s["gen_ai.usage.output_tokens"]) for s in stories} == {
        (1, 0, None)
    }
