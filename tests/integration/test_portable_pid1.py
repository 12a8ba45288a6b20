"""An engine that is PID 1, as in most containers: what it recorded leaves before the container ends with it."""

from __future__ import annotations

import os

import psutil
import pytest

from fix_place import usable


@pytest.fixture(scope="module")
def pid1():
    """The command that runs a program as PID 1 of a namespace with its own /proc."""
    root = () if os.getuid() == 0 else ("--map-root-user",)
    return usable("unshare", *root, "--pid", "--fork", "--kill-child", "--mount-proc")


def test_what_pid_1_recorded_leaves_before_the_container_ends(place, pid1):
    """The kernel kills the agent with its PID 1; so the last process of a container waits for the agent's exports."""
    assert place.run("assert os.getpid() == 1; request('pid-1'); report()", prefix=pid1)["lost"] == 0
    place.arrived("pid-1")


def test_the_child_of_pid_1_waits_as_well(place, pid1):
    """A container with an init (docker run --init) ends with the init's child."""
    init = (*pid1, "sh", "-c", '"$@" & wait $!', "sh")
    assert place.run("assert os.getppid() == 1; request('init'); report()", prefix=init)["lost"] == 0
    place.arrived("init")


def test_pid_1_ends_on_sigterm_as_its_host_says(place, pid1):
    """A host that handles SIGTERM, as servers do, exits; the records go with it, not before."""
    code = """
        import signal
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        request('sigterm'); assert rec.flush(15); request('sigterm-last'); print('ready', flush=True); time.sleep(60)
    """
    program = place.start(code, prefix=pid1)
    assert program.stdout.readline() == "ready\n"
    (engine,) = psutil.Process(program.pid).children()
    engine.terminate()
    assert program.communicate(timeout=30) == ("", "")
    assert program.returncode == 0
    place.arrived("sigterm")
    place.arrived("sigterm-last")


def test_pid_1_takes_its_dead_agent_off_the_process_table(place, pid1):
    """Orphans become children of PID 1; a killed agent leaves no zombie there, and a new one comes up."""
    code = """
        request('before'); assert rec.flush(15)
        os.kill(rec._drainer._transport._agent_pid, 9)
        deadline = time.monotonic() + 15
        while not rec.errors and time.monotonic() < deadline:
            time.sleep(0.01)
        request('after'); assert rec.flush(15)
        def states():
            pids = [pid for pid in os.listdir("/proc") if pid.isdigit()]
            return [open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] for pid in pids]
        while len(states()) != 2 and time.monotonic() < deadline:
            time.sleep(0.1); rec.emit(0, 0)
        assert "Z" not in states() and len(states()) == 2, states()
        report()
    """
    facts = place.run(code, prefix=pid1)
    assert facts["errors"] == {"transport.agent_lost": 1}
    place.arrived("after")
