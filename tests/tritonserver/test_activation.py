"""Recording without a word in the models' code, in an environment of its own kind, and what must not be recorded."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from triton_models import write_repository

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
COMPLETING = ()
"""Flags without --disable-auto-complete-config: each model's file is run once more, in a process that only asks."""


@pytest.fixture
def enabled():
    """``axonize triton enable`` was run in this environment; taken back afterwards."""

    def run(command):
        done = subprocess.run([BIN / "axonize", "triton", command], capture_output=True, text=True, check=True)
        return done.stdout

    assert "next: AXONIZE_TRITON=1 tritonserver" in run("enable")
    yield run
    run("disable")


def test_without_a_word_in_the_code(triton_serve, enabled):
    """The model that says nothing is recorded, the one that is decorated not twice; who only asks emits nothing."""
    assert "enabled by" in enabled("status")
    with triton_serve("bare", "plain", flags=COMPLETING, env={"AXONIZE_TRITON": "1"}) as server:
        for at in range(3):
            assert server.infer("bare", at, f"no-code-{at}").values == [2 * at]
            assert server.infer("plain", at, f"twice-{at}").values == [2 * at]
        requests = list(server.capture.named("no-code-", 3).values()) + list(server.capture.named("twice-", 3).values())
        server.stop()
        server.surroundings.end_agents()
        assert len(server.capture.of("request")) == 6
        assert sum(b["ai.batch.size"] for b in server.capture.of("batch")) == 6
        assert {r.resource["ai.model.instance"] for r in requests} == {"bare_0_0", "plain_0_0"}
        assert "axonize" not in server.log.lower()


def test_the_readme(triton_serve, enabled, tmp_path):
    """Its section about Triton, as its reader types it: one line in a model, and none."""
    section = (ROOT / "README.md").read_text().partition("[Triton](docs/triton.md)")[2].partition("Spans go to")[0]
    code = "\n".join(re.findall(r"`(import axonize_triton|@\S+|class TritonPythonModel)`", section))
    assert code.count("\n") == 2
    (typed,) = re.findall(r"^```console\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    install, enable, serve = (line.removeprefix("$ ") for line in typed.splitlines())
    assert install.split("#")[0].split() == ["pip", "install", "'axonize[triton]'"]
    assert enable == "axonize triton enable"
    (variable, program, *_) = serve.split()
    assert program == "tritonserver"
    repository = write_repository(tmp_path / "models", "bare", "plain")
    bare, plain = (repository / name / "1" / "model.py" for name in ("bare", "plain"))
    before, class_line, body = bare.read_text().partition("class TritonPythonModel")
    assert code.endswith(class_line)
    plain.write_text(before + code + body)
    for env in ({}, dict([variable.split("=")])):
        with triton_serve(repository=repository, env=env) as server:
            for name in ("bare", "plain"):
                server.infer(name, 1, f"readme-{name}")
            expected = {"readme-bare", "readme-plain"} if env else {"readme-plain"}
            assert server.capture.named("readme-", len(expected)).keys() == expected


def test_not_asked_for(triton_serve, enabled):
    """Enabled, but AXONIZE_TRITON is not set: as if it were not there. Switched off: nothing at all."""
    with triton_serve("bare", env={"AXONIZE_TRITON": None}) as server:
        assert server.infer("bare", 1, "a").values == [2]
        assert server.surroundings.agents() == []


def test_disabled_again(triton_serve, enabled):
    """The environment is as it was; AXONIZE_DISABLED is for what the code asks for."""
    assert enabled("disable").startswith("removed")
    env = {"AXONIZE_TRITON": "1", "AXONIZE_DISABLED": "1"}
    with triton_serve("bare", "plain", env=env) as server:
        assert server.infer("bare", 1, "a").values == [2]
        assert server.infer("plain", 1, "b").values == [2]
        assert server.surroundings.agents() == []
        assert not server.surroundings.runtime.exists()


def test_numpy_that_breaks_the_backend_is_named(triton_serve):
    """The server is ready and answers with nothing: its log has our sentence."""
    prefix = Path(sys.prefix, "numpy2")
    if not prefix.exists():
        pytest.skip(f"no {prefix}: make test-triton makes it")
    with triton_serve("plain", prefix=prefix) as server:
        server.infer("plain", 1, "a")
        (line,) = [line for line in server.log.splitlines() if line.startswith("axonize: numpy 2")]
        assert "breaks this Triton's Python backend: its tensors come back empty" in line
        assert "install numpy<2 into the model's environment" in line
