"""Two virtual environments with two versions of Axonize on one machine: each has its own agent, and both deliver."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import axonize_core
from axonize_core.doctor import agent_status

WAIT = "request(sys.argv[1]); assert rec.flush(15); print('ready', flush=True); sys.stdin.readline(); report()"


@pytest.fixture
def environment(tmp_path):
    """Makes a virtual environment with a version of Axonize of its own and everybody else's packages."""

    def make(version, **changes):
        home = tmp_path / f"env-{version}"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
        purelib = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (purelib / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
        package = purelib / "axonize_core"
        shutil.copytree(Path(axonize_core.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
        for name, (before, after) in {"__init__.py": (axonize_core.__version__, version), **changes}.items():
            text = (package / name).read_text()
            assert text.count(before) == 1
            (package / name).write_text(text.replace(before, after))
        return home / "bin" / "python"

    return make


def test_each_version_has_an_agent_of_its_own(place, environment):
    """The socket's name covers version and environment: nobody talks to another version's agent by accident."""
    versions = {"7.0.1": environment("7.0.1"), "7.0.2": environment("7.0.2")}
    programs = [place.start(WAIT, python=python, arguments=[name]) for name, python in versions.items()]
    for program in programs:
        assert program.stdout.readline() == "ready\n", program.communicate("\n")
    sockets = list(place.runtime.glob("agent-*.sock"))
    assert sorted(agent_status(path)["version"] for path in sockets) == ["7.0.1", "7.0.2"]
    texts = [finding["text"] for finding in place.doctor()]
    assert sum("1 processes" in text for text in texts) == 2, "doctor sees the agents of both"
    for program in programs:
        program.communicate("\n", timeout=30)
        assert program.returncode == 0
    for name in versions:
        place.arrived(name)


@pytest.fixture
def node_agent(place, environment, tmp_path):
    """A node agent of another version, on a socket that everybody is pointed at."""
    python, path = environment("8.0.0"), tmp_path / "node.sock"
    command = [python, "-m", "axonize_core.agent", "--socket", path]
    agent = subprocess.Popen(command, env=place.env(), stderr=subprocess.DEVNULL, cwd=tmp_path)
    yield path
    agent.terminate()
    assert agent.wait(20) == 0


def test_a_node_agent_serves_other_versions_of_the_same_protocol(place, node_agent):
    """One agent of version 8 per machine, engines of this version: records arrive."""
    env = {"AXONIZE_AGENT": f"unix://{node_agent}"}
    assert place.run("request('other-version'); report()", env=env)["lost"] == 0
    place.arrived("other-version")


def test_a_node_agent_refuses_another_protocol_and_doctor_says_so(place, node_agent, environment, tmp_path):
    """Nothing is misread: the engine goes on, its records are counted as dropped, and the reason is there to read."""
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)
    other = environment("9.0.0", **{"frames.py": ("PROTOCOL = 1", "PROTOCOL = 9")})
    env = {"AXONIZE_AGENT": f"unix://{node_agent}", "AXONIZE_RUNTIME_DIR": str(runtime)}
    facts = place.run("request('other-protocol'); report(1)", python=other, env=env)
    assert facts["lost"] == 4
    assert facts["errors"]["transport.ConnectionAbortedError"] >= 1
    texts = [finding["text"] for finding in place.doctor(env=env)]
    assert any("4 records were dropped: protocol 9 is not 1" in text for text in texts), texts
