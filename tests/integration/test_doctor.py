"""axonize doctor and the other commands that every installation has, as a user would run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from axonize_core import doctor
from axonize_hf import _supported

AXONIZE = Path(sys.executable).parent / "axonize"


def axonize(*arguments, **env):
    merged = {**os.environ, "AXONIZE_API_URL": "http://127.0.0.1:9", **env}
    return subprocess.run([AXONIZE, *arguments], env=merged, capture_output=True, text=True, timeout=60, check=False)


def test_doctor_names_what_is_wrong_and_the_next_step(tmp_path):
    """With no collector it says which endpoint cannot be reached, and how to start one."""
    result = axonize("doctor", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", AXONIZE_RUNTIME_DIR=str(tmp_path))
    assert result.returncode == 1
    assert "http://127.0.0.1:9 cannot be reached" in result.stdout
    assert "axonize collector" in result.stdout
    assert "the first instrumented process starts one" in result.stdout


def test_doctor_is_content_when_the_endpoint_answers(tmp_path, otlp_sink):
    """Nothing wrong: exit code 0, and all facts as JSON on request."""
    result = axonize("doctor", "--json", OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url, AXONIZE_RUNTIME_DIR=str(tmp_path))
    findings = json.loads(result.stdout)
    assert result.returncode == 0
    assert {f["part"] for f in findings} >= {
        "installation",
        "integrations",
        "switches",
        "gpu",
        "plugins",
        "agent",
        "collector",
    }


def test_doctor_says_what_is_not_supported_yet(tmp_path, otlp_sink):
    """A protocol we cannot speak is a problem with a name, not a silent choice of another."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp_sink.url, "AXONIZE_RUNTIME_DIR": str(tmp_path)}
    result = axonize("doctor", OTEL_EXPORTER_OTLP_PROTOCOL="http/json", **env)
    assert "OTEL_EXPORTER_OTLP_PROTOCOL='http/json' is not supported; http/protobuf is used" in result.stdout
    assert result.returncode == 1


@pytest.mark.parametrize(
    ("version", "level", "says"),
    [("5.1.0", "ok", "is supported"), ("9.0", "problem", "upgrade axonize"), (None, "note", "is not installed")],
)
def test_doctor_says_which_versions_are_supported(monkeypatch, version, level, says):
    """A framework in a version that an integration does not know is a problem; one that is absent is not."""
    monkeypatch.setattr(doctor, "_version", lambda _: version)
    finding = doctor._integration(_supported)
    assert finding.level == level
    assert says in finding.text
    assert ">=4.46,<6.0" in finding.text


def test_doctor_says_what_newer_versions_add(monkeypatch):
    """An older framework is supported, and what it would gain by an update is named."""
    monkeypatch.setattr(doctor, "_version", lambda _: "4.57.6")
    assert "newer versions add times of tokens in continuous batching (5.0)" in doctor._integration(_supported).text


def test_doctor_shows_what_an_agent_dropped(tmp_path, otlp_sink):
    """Drops in an inference process are visible while it lives."""
    code = (
        "import sys\n"
        "from axonize_core.recorder import get_recorder\n"
        "r = get_recorder(); r.emit(6, 1, None); assert r.flush(20); r.count_dropped(3); r.count_error('hf.x'); r.emit(6, 2, None)\n"
        "assert r.flush(20); print('ready', flush=True); sys.stdin.readline()\n"
    )
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp_sink.url, "AXONIZE_RUNTIME_DIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    result = axonize("doctor", **env)
    process.communicate("\n", timeout=30)
    assert "records dropped: 3" in result.stdout
    assert "failures in hf.x: 1" in result.stdout
    assert result.returncode == 1


def test_doctor_reports_a_socket_nobody_serves(tmp_path):
    """A stale socket is named."""
    (tmp_path / "agent-1-dead.sock").touch()
    result = axonize("doctor", AXONIZE_RUNTIME_DIR=str(tmp_path))
    assert "agent-1-dead.sock does not answer" in result.stdout


def test_another_agent_hides_not_that_this_one_is_missing(tmp_path):
    """What serves other settings is no help to these: both are named."""
    (tmp_path / "agent-1-other.sock").touch()
    env = {"AXONIZE_RUNTIME_DIR": str(tmp_path), "AXONIZE_AGENT": f"unix://{tmp_path}/node.sock"}
    said = axonize("doctor", **env).stdout
    assert "node.sock; start one: axonize agent --socket" in said.replace("\n", " ")
    assert "agent-1-other.sock does not answer" in said


def test_doctor_says_who_switched_off(tmp_path):
    """The switch that is on is named."""
    result = axonize("doctor", AXONIZE_DISABLED="1", AXONIZE_RUNTIME_DIR=str(tmp_path))
    assert "everything is off, by AXONIZE_DISABLED" in result.stdout
    assert "ENVIRONMENT keeps" in axonize("doctor", ENVIRONMENT="test", AXONIZE_RUNTIME_DIR=str(tmp_path)).stdout


def test_a_bad_setting_is_one_line(tmp_path):
    """Errors of ours are sentences, not tracebacks."""
    result = axonize("doctor", AXONIZE_GPU_PROVIDER="tpu")
    assert result.returncode == 2
    assert result.stderr.startswith("axonize: AXONIZE_GPU_PROVIDER='tpu'")
    assert len(result.stderr.splitlines()) == 1


def test_help_teaches_and_env_lists_the_settings():
    """--help names the first steps; env prints every variable."""
    text = axonize("--help").stdout
    for command in ("doctor", "agent", "demo", "collector", "requests"):
        assert command in text
    assert "AXONIZE_QUEUE_CAPACITY" in axonize("env").stdout
