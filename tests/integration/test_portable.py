"""Odd places to serve in: the engine goes on, and records arrive or are counted as dropped where doctor shows them."""

from __future__ import annotations

import os
import tempfile

import pytest

from fix_place import usable

LONG = "x" * 120
READ_ONLY = "for d in {}; do mount --bind $d $d; mount -o bind,remount,ro $d; done"
NO_PLACE = {"AXONIZE_RUNTIME_DIR": None}


def in_mounts(script):
    """Return a command that runs another one where the mounts were changed by a shell script."""
    private = ("unshare", "--mount") if os.getuid() == 0 else ("unshare", "--map-root-user", "--mount")
    return usable(*private, "sh", "-ec", f'{script}\nexec "$@"', "sh")


def test_nothing_but_the_endpoint_is_in_the_environment(place):
    """No HOME, no XDG_RUNTIME_DIR, no TMPDIR, no PATH: a directory below /tmp serves."""
    kept = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_RESOURCE_ATTRIBUTES")
    taken = {name: None for name in place.env() if name not in kept}
    assert place.run("request('no-environment'); report()", env=taken)["lost"] == 0
    place.arrived("no-environment")


@pytest.mark.parametrize(
    "env",
    [
        {"XDG_RUNTIME_DIR": "/nonexistent/run"},
        {"XDG_RUNTIME_DIR": f"/tmp/{LONG}"},
        {"TMPDIR": f"/tmp/{LONG}/{LONG}"},
        {"TMPDIR": "relative"},
    ],
    ids=["xdg-missing", "xdg-too-long", "tmpdir-too-long", "tmpdir-relative"],
)
def test_a_directory_that_cannot_serve_is_passed_over(place, env, request):
    """The next one serves, and doctor looks there too."""
    name = request.node.callspec.id
    assert place.run(f"request({name!r}); report()", env={**NO_PLACE, **env})["lost"] == 0
    place.arrived(name)


def test_the_runtime_directory_of_another_user_is_left_alone(place, tmp_path):
    """What sudo passes on as XDG_RUNTIME_DIR is not ours to write to."""
    if os.getuid() != 0:
        pytest.skip("only root can give a directory away")
    os.chown(tmp_path, 12345, 12345)
    env = {**NO_PLACE, "XDG_RUNTIME_DIR": str(tmp_path)}
    assert place.run("request('others-xdg'); report()", env=env)["lost"] == 0
    place.arrived("others-xdg")
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_a_name_and_without_a_home(place, tmp_path):
    """A uid that no passwd knows, with a HOME it may not look into."""
    prefix = usable("unshare", "--user", "--map-user=12345", "--map-group=12345")
    code = "import pwd\ntry: pwd.getpwuid(os.getuid())\nexcept KeyError: request('nameless')\nreport()"
    env = {**NO_PLACE, "HOME": str(tmp_path / "home"), "AXONIZE_STATE_DIR": None}
    assert place.run(code, prefix=prefix, env=env)["lost"] == 0
    place.arrived("nameless")
    assert list(tmp_path.iterdir()) == [], "a home that is not there is not made"


def test_a_home_that_must_not_be_looked_into_switches_nothing_off(place, tmp_path):
    """Settings are read where the place of the opt-out file is forbidden."""
    prefix = usable("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")
    (tmp_path / "home").mkdir(mode=0o700)
    code = "from axonize_core.settings import Settings; print(json.dumps(Settings.from_env().disabled))"
    assert place.run(code, prefix=prefix, env={"HOME": str(tmp_path / "home")}) is False


def test_a_runtime_directory_that_is_too_long_is_said(place, tmp_path):
    """What was asked for is not replaced in silence: the engine goes on, drops are counted, doctor names the limit."""
    env = {"AXONIZE_RUNTIME_DIR": str(tmp_path / LONG)}
    facts = place.run("request('too-long'); report(0.3)", env=env)
    assert facts["lost"] == 4
    assert facts["errors"]["transport.ConfigurationError"] >= 1
    (finding,) = place.doctor(env=env)
    assert (finding["level"], "over 107 bytes" in finding["text"]) == ("problem", True)


def test_a_read_only_root_file_system(place):
    """/dev/shm serves, as in a container that may write nowhere else."""
    prefix = in_mounts(READ_ONLY.format("/ /tmp"))
    assert place.run("request('read-only'); report()", prefix=prefix, env=NO_PLACE, cwd="/")["lost"] == 0
    place.arrived("read-only")


def test_nothing_can_be_written_at_all(place):
    """The engine goes on, what it recorded is counted as lost, and doctor names the way out."""
    assert not place.agents_ended(), "a socket on a read-only file system serves while its agent lives"
    prefix = in_mounts(READ_ONLY.format("/ /tmp /dev/shm"))
    facts = place.run("request('nowhere'); report(0.3)", prefix=prefix, env=NO_PLACE, cwd="/")
    assert facts["lost"] == 4
    assert facts["errors"]["transport.start"] == 1
    finding = place.doctor(prefix=prefix, env=NO_PLACE)[0]
    assert finding["level"] == "problem"
    assert "set AXONIZE_RUNTIME_DIR" in finding["text"]


def test_a_machine_without_shared_memory(place):
    """/dev/shm is only the last resort."""
    prefix = in_mounts("umount -l /dev/shm")
    assert place.run("request('no-shm'); report()", prefix=prefix, env=NO_PLACE)["lost"] == 0
    place.arrived("no-shm")


@pytest.mark.parametrize("moment", ["before", "after"])
def test_no_process_may_be_started(place, moment):
    """RLIMIT_NPROC, hit by our thread or by the agent: the engine goes on, every record is counted, doctor says so."""
    prefix = usable("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))"
    lines = [limit, "request('limited')"] if moment == "before" else ["request('limited')", limit]
    code = "\n".join([*lines, "time.sleep(0.3)", "report(0.3)"])
    with tempfile.TemporaryDirectory() as runtime:  # pytest's own directories are closed to other users
        os.chown(runtime, 12345, 12345)
        env = {"AXONIZE_RUNTIME_DIR": runtime, "HOME": "/"}
        facts = place.run(code, prefix=prefix, env=env)
        texts = [finding["text"] for finding in place.doctor(prefix=prefix, env=env)]
    assert facts["lost"] == 4
    assert facts["errors"] == ({"recorder.start": 1} if moment == "before" else {"transport.start": 1})
    if moment == "after":
        assert "4 records were dropped: no agent can be started" in texts[-1]


def test_standard_streams_are_closed(place, tmp_path):
    """The lock and the socket keep clear of the numbers 0 to 2, where a host may still print."""
    prefix = usable("sh", "-c", 'exec 0<&- 1>&- 2>&-; exec "$@"', "sh")
    code = """
        request('closed'); assert rec.flush(15)
        drainer = rec._drainer._transport._connection.fileno()
        open(sys.argv[1], 'w').write(f'{drainer} {facts()["lost"]}')
    """
    assert place.run(code, prefix=prefix, arguments=[tmp_path / "said"]) is None
    fd, lost = map(int, (tmp_path / "said").read_text().split())
    assert fd > 2
    assert lost == 0
    place.arrived("closed")


def test_the_working_directory_is_gone(place, tmp_path):
    """A process may serve from a directory that was deleted."""
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"os.rmdir({str(gone)!r}); request('no-cwd'); report()"
    assert place.run(code, cwd=gone)["lost"] == 0
    place.arrived("no-cwd")


def test_locale_c_with_other_bytes_in_the_environment(place):
    """What cannot be decoded in a name is shown as such; nothing is lost for it."""
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "OTEL_SERVICE_NAME": "dienst-größe"}
    assert place.run("request('gr\\u00f6\\u00dfe'); report()", env=env)["lost"] == 0
    place.arrived("größe")
    assert "dienst-größe" in {resource["service.name"] for resource in place.sink.resources}


def test_an_embedded_interpreter_without_an_executable(place):
    """sys.executable is empty: the prefix's Python runs the agent."""
    assert place.run("sys.executable = ''; request('embedded'); report()")["lost"] == 0
    place.arrived("embedded")


@pytest.mark.parametrize(
    ("python", "reason"),
    [("/nonexistent/python", "No such file or directory"), ("/bin/false", "ended at its start with status 1")],
)
def test_an_agent_that_cannot_start_is_said_by_doctor(place, tmp_path, python, reason):
    """A process that lost all it recorded leaves a note behind; the next one that finds an agent leaves none."""
    env = {"AXONIZE_RUNTIME_DIR": str(tmp_path), "AXONIZE_AGENT_PYTHON": python}
    facts = place.run("request('no-agent'); time.sleep(0.5); report(0.3)", env=env)
    assert facts["lost"] == 4
    assert facts["errors"]["transport.start"] == 1
    finding = place.doctor(env=env)[-1]
    assert finding["level"] == "problem"
    assert "ended without an agent, 4 records were dropped" in finding["text"]
    assert reason in finding["text"]


def test_a_node_agent_that_is_not_there_is_said_by_doctor(place, tmp_path):
    """AXONIZE_AGENT names a socket nobody serves: doctor gives the command, and what was lost."""
    env = {"AXONIZE_RUNTIME_DIR": str(tmp_path), "AXONIZE_AGENT": f"unix://{tmp_path}/node.sock"}
    tmp_path.chmod(0o700)
    assert place.run("request('no-node-agent'); report(0.3)", env=env)["lost"] == 4
    texts = [finding["text"] for finding in place.doctor(env=env)]
    assert any("ended without an agent, 4 records were dropped" in text for text in texts)


def test_a_host_that_waits_for_all_its_children_does_not_wait_for_the_agent(place):
    """The agent is nobody's child for longer than it takes to load."""
    code = """
        request('waiting'); assert rec.flush(15)
        try:
            while True: os.wait()
        except ChildProcessError:
            report()
    """
    assert place.run(code)["lost"] == 0
    place.arrived("waiting")


def test_warnings_are_errors_in_the_host(place):
    """Nothing of ours warns, not even when the interpreter ends while the agent is still loading."""
    program = place.start("request('strict'); rec.close(0.1)", env={"PYTHONWARNINGS": "error"})
    assert program.communicate(timeout=30) == ("", "")
    assert program.returncode == 0
