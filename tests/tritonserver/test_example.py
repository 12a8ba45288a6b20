"""The example's repository in a real server, and its README as its reader types it."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from triton_capture import model_of

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "triton"


def commands():
    """The commands of the README, in order."""
    blocks = re.findall(r"^```console\n(.*?)^```", (EXAMPLE / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def served(triton_serve):
    """A server started with the README's flags, its client's output, and all that was captured."""
    install, endpoint, serve, ask, *_ = commands()
    assert install == "pip install 'axonize[triton]'"
    assert endpoint.startswith("export OTEL_EXPORTER_OTLP_ENDPOINT=")
    program, repository, *flags = shlex.split(serve)
    assert (program, repository) == ("tritonserver", "--model-repository=examples/triton/models")
    with triton_serve(repository=EXAMPLE / "models", flags=tuple(flags)) as server:
        python, script, *where = shlex.split(ask)
        assert (python, where) == ("python", ["localhost", "8000", "8001"])
        command = [sys.executable, ROOT / script, "127.0.0.1", str(server.port), str(server.grpc_port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        server.capture.wait(lambda c: len(c.of("request")) >= 35)
        server.stop()
        server.surroundings.end_agents()
        yield done.stdout, server.capture


def test_the_client_is_answered(served):
    """As the models answer."""
    printed, _ = served
    assert "classify: 32 answers" in printed
    assert re.search(r"^classify_text: \[.*\]$", printed, re.MULTILINE)
    assert "generate: the quick brown fox jumps over the lazy dog" in printed


def test_requests_of_the_classifier(served):
    """One span each, in fewer batches."""
    _, capture = served
    mine = [s for s in capture.of("request") if s["ai.request.id"].startswith("classify-")]
    assert len(mine) == 32
    batches = capture.batches("classify")
    assert sum(b["ai.batch.size"] for b in batches) == 33  # one is the ensemble's
    assert len(batches) < 33


def test_the_ensemble(served):
    """Both of its models, in the trace that the client named."""
    _, capture = served
    mine = [s for s in capture.of("request") if s["ai.request.id"] == "text-0"]
    assert {model_of(s) for s in mine} == {"tokenize", "classify"}
    assert {(s.trace_id, s.parent_id) for s in mine} == {("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")}


def test_the_generator(served):
    """Its tokens and times."""
    _, capture = served
    (request,) = [s for s in capture.of("request") if s["ai.request.id"] == "generate-0"]
    assert request.resource["service.name"] == "generate"
    assert (request["gen_ai.usage.input_tokens"], request["gen_ai.usage.output_tokens"]) == (9, 9)
    assert request["gen_ai.latency.time_to_first_token"] > 0.02
    assert request["gen_ai.latency.time_per_output_token"] > 0.005
    assert capture.children(request).keys() == {"prefill", "decode"}


def test_the_last_commands_exist():
    """They need a collector, which is not in this environment."""
    assert commands()[4:] == ["axonize requests", "axonize trace generate-0"]
