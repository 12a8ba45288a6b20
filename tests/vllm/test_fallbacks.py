"""Where the scheduler cannot be recorded; and beside vLLM's own tracing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vllm_load
import vllm_sums

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
LACKING = """
from axonize_vllm import _supported
there = _supported.missing
_supported.missing = lambda capability: "no Scheduler.made_up" if capability == "scheduler" else there(capability)
"""
QUESTIONS = [{"prompt": [20 + k] * 40, "max_tokens": 5 + k} for k in range(6)]


@pytest.fixture(scope="module")
def lacking(serve, tmp_path_factory):
    """A server of a vLLM without what the scheduler's records need, its answers, and what doctor says of it."""
    place = tmp_path_factory.mktemp("lacking")
    (place / "sitecustomize.py").write_text(LACKING)
    paths = [str(place), *filter(None, [os.environ.get("PYTHONPATH")])]
    with serve(env={"PYTHONPATH": os.pathsep.join(paths)}) as server:
        answers = vllm_load.run(server.base_url, QUESTIONS, concurrency=2)
        server.capture.wait_for(len(QUESTIONS))
        doctor = subprocess.run(
            [Path(sys.executable).with_name("axonize"), "doctor"], env=server.surroundings.env,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        yield server, answers, doctor.stdout


def test_requests_come_from_statistics(lacking):
    """Each once, with tokens and reason; no step is made up."""
    server, answers, _ = lacking
    said = {f"cmpl-{a.request_id}-0": (a.prompt_tokens, a.completion_tokens, [a.finish_reason]) for a in answers}
    names = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.response.finish_reasons")
    spans = server.capture.of("request")
    assert len(spans) == len(said)
    assert {s["ai.request.id"]: tuple(map(s.__getitem__, names)) for s in spans} == said
    assert server.capture.of("batch") == []


def test_one_line_says_why(lacking):
    """In each process that would have recorded, and a row of doctor."""
    server, _, doctor = lacking
    lines = [line for line in server.log.splitlines() if "no Scheduler.made_up" in line]
    api_server = [line for line in lines if "EngineCore" not in line and "Worker" not in line]
    assert len(api_server) == 1, lines
    assert "requests come from vLLM's own statistics" in api_server[0]
    (row,) = [line for line in doctor.splitlines() if "stat_logger" in line]
    assert "steps and members are not" in row


@pytest.fixture(scope="module")
def traced(serve, module_capture):
    """A server that traces by itself as well, and one answer."""
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
    endpoint = ("--otlp-traces-endpoint", f"{module_capture.url}/v1/traces")
    env = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    with serve(*endpoint, env=env, capture=module_capture) as server:
        answers = vllm_load.run(server.base_url, [{"headers": headers, "prompt": [20] * 40}])
        vllm_sums.settle(server.surroundings)
    return module_capture, answers


def test_vllms_own_span_is_a_sibling(traced):
    """One of each, both children of the caller's span."""
    capture, answers = traced
    (own,) = [s for s in capture.foreign if s.phase == "llm_request"]
    (ours,) = vllm_sums.check(capture.phases)
    vllm_sums.check_answers([ours], answers)
    assert {(s.trace_id, s.parent_id) for s in (own, ours.span)} == {(TRACE, CALLER)}
    assert own["gen_ai.usage.completion_tokens"] == ours.output_tokens
