"""The agent as a real process, with real engines around it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from axonize_core.cpus import NICE
from axonize_core.doctor import agent_status

PRELUDE = """
import os, sys, time
exec(os.environ.pop("BEFORE_ANYTHING", ""))
from axonize_core.frames import Kind
from axonize_core.recorder import get_recorder
rec = get_recorder()
src = rec.source("transformers", "", "tiny", "hf", ("cpu", 0, None))

def request(name, end=True, tokens=4):
    seq, run, times = rec.next_handle(), rec.next_handle(), []
    rec.emit(Kind.REQUEST, seq, (src, rec.clock(), name, None, "text_completion", 3, None))
    rec.emit(Kind.RUN, run, (src, (seq,), (3,), "generate", times))
    for _ in range(tokens):
        times.append(rec.clock())
    if end:
        times.append(-rec.clock())
        rec.emit(Kind.RUN_END, run, (tokens, None))
        rec.emit(Kind.REQUEST_END, seq, ("length", 3, tokens, None, None))
    return seq
"""


@pytest.fixture
def engine(tmp_path, otlp_sink):
    """Starts processes that record; ends them and their agents afterwards."""
    runtime = tmp_path / "run"
    env = {
        **os.environ,
        "AXONIZE_RUNTIME_DIR": str(runtime),
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp_sink.url,
        "OTEL_SERVICE_NAME": "svc",
        "AXONIZE_GPU_PROVIDER": "simulated",
        "AXONIZE_GPU_INTERVAL_MS": "100",
    }
    started = []

    def start(code, **more):
        process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
            env={**env, **more},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    start.runtime = runtime
    start.sockets = lambda: list(runtime.glob("agent-*.sock"))
    start.env = env
    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        process.stdin.close()
        process.stdout.close()
    deadline = time.monotonic() + 20
    while start.sockets() and time.monotonic() < deadline:
        time.sleep(0.05)
    log = "".join(p.read_text() for p in runtime.glob("*.log"))
    assert not start.sockets(), f"an agent outlived its clients: {log}"


def wait_until_gone(path):
    """Wait until nobody serves a socket any more; SIGKILL takes a moment."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            agent_status(path)
        except OSError:
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} is still served")


def names(sink):
    return sorted(s.name for s in sink.spans)


def attribute(span, name):
    return next((a.value for a in span.attributes if a.key == name), None)


def test_a_process_that_records_gets_an_agent_and_its_spans_arrive(engine, otlp_sink):
    """One request makes request, queue, prefill, decode and a span per step; GPU metrics come along."""
    process = engine("request('r1'); print(rec.flush(20), rec.errors, flush=True)")
    assert process.wait(30) == 0
    assert process.stdout.read().startswith("True")
    otlp_sink.wait(lambda s: len(s.spans) == 8 and s.metrics)
    assert names(otlp_sink) == ["batch"] * 4 + ["decode", "prefill", "queue", "request"]
    assert {r["service.name"] for r in otlp_sink.resources} == {"svc"}
    assert {r["service.instance.id"] for r in otlp_sink.resources} != {""}
    root = next(s for s in otlp_sink.spans if s.name == "request")
    assert attribute(root, "ai.request.id").string_value == "r1"
    children = [s for s in otlp_sink.spans if s.parent_span_id == root.span_id]
    assert sorted(s.name for s in children) == ["decode", "prefill", "queue"]
    assert all(s.trace_id == root.trace_id for s in children)


def test_nothing_heavy_is_imported_in_the_inference_process(engine):
    """The recorder, the shipper and msgspec, nothing else: no pluggy, OpenTelemetry, NVML, click or HTTP."""
    process = engine(
        """
        request('r1'); rec.flush(20)
        top = {name.split('.')[0] for name in sys.modules}
        ours = sorted(m for m in sys.modules if m.startswith('axonize'))
        outside = sorted(top - set(sys.stdlib_module_names) - {'__main__', 'sitecustomize', 'usercustomize'})
        import json; print(json.dumps([ours, outside]))
        """
    )
    ours, outside = json.loads(process.communicate(timeout=60)[0])
    # typing_extensions is what msgspec itself imports; coverage is there when the tests are measured.
    allowed = {"axonize_core", "msgspec", "typing_extensions", "coverage", "$coverage"}
    assert {m for m in outside if not m.startswith(("_", "__editable__"))} <= allowed
    core = {"absence", "errors", "frames", "recorder", "runtime_dir", "settings", "shipper", "starter", "transport"}
    core |= {"alarm", "cpus", "gpu", "gpu.process"}
    assert ours == ["axonize_core", *sorted(f"axonize_core.{m}" for m in core)]


def test_processes_with_the_same_settings_share_one_agent(engine, otlp_sink):
    """Two engines, one agent; another endpoint means another agent."""
    wait = "request(sys.argv[0]); rec.flush(20); print('ready', flush=True); sys.stdin.readline()"
    first, second = engine(wait), engine(wait)
    other = engine(wait, OTEL_EXPORTER_OTLP_HEADERS="x=y")
    for process in (first, second, other):
        assert process.stdout.readline() == "ready\n"
    assert len(engine.sockets()) == 2
    live = sorted(agent_status(path)["processes_live"] for path in engine.sockets())
    assert live == [1, 2]
    assert engine.runtime.stat().st_mode & 0o777 == 0o700
    for process in (first, second, other):
        process.communicate("\n", timeout=30)
    otlp_sink.wait(lambda s: names(s).count("request") == 3)


def test_a_killed_agent_is_restarted_and_the_engine_does_not_notice(engine, otlp_sink):
    """kill -9 of the agent: a new one comes up, later requests arrive, the engine only counts."""
    process = engine(
        """
        request('before'); assert rec.flush(20)
        print('ready', flush=True); sys.stdin.readline()
        request('after'); assert rec.flush(30)
        print('done', flush=True); sys.stdin.readline()
        """
    )
    assert process.stdout.readline() == "ready\n"
    otlp_sink.wait(lambda s: "request" in names(s))
    pid = agent_status(engine.sockets()[0])["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(engine.sockets()[0])
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"
    assert agent_status(engine.sockets()[0])["pid"] != pid
    process.communicate("\n", timeout=30)
    assert process.returncode == 0
    otlp_sink.wait(lambda s: names(s).count("request") == 2)


def test_a_killed_engine_ends_its_requests_with_status_error(engine, otlp_sink):
    """SIGKILL in the middle of a generation: what was shipped is there, the open request is an error."""
    process = engine("request('open', end=False); rec.flush(20); print('ready', flush=True); time.sleep(60)")
    assert process.stdout.readline() == "ready\n"
    process.kill()
    otlp_sink.wait(lambda s: "request" in names(s))
    root = next(s for s in otlp_sink.spans if s.name == "request")
    assert root.status.code == 2
    assert attribute(root, "error.type").string_value == "engine_lost"
    assert attribute(root, "ai.incomplete").bool_value
    otlp_sink.wait(lambda s: names(s).count("batch") == 4)


def test_a_fork_after_recording_ships_on_its_own(engine, otlp_sink):
    """Parent and child each arrive, under their own instance id."""
    process = engine(
        """
        request('parent-1'); rec.flush(20)
        pid = os.fork()
        if pid == 0:
            request('child'); ok = rec.close(20); os._exit(0 if ok else 1)
        _, status = os.waitpid(pid, 0)
        request('parent-2'); sys.exit(0 if rec.flush(20) else status or 3)
        """
    )
    assert process.wait(60) == 0
    otlp_sink.wait(lambda s: names(s).count("request") == 3)
    roots = [(s, r) for s, r in zip(otlp_sink.spans, otlp_sink.resources, strict=True) if s.name == "request"]
    instance = {attribute(s, "ai.request.id").string_value: r["service.instance.id"] for s, r in roots}
    assert instance["parent-1"] == instance["parent-2"] != instance["child"]


def test_a_forked_child_does_not_hide_that_the_engine_died(engine, otlp_sink):
    """A child that lives on (a data loader) holds no copy of the connection: the killed parent's request still ends."""
    process = engine(
        """
        request('open', end=False); assert rec.flush(20)
        if os.fork() == 0:
            time.sleep(20); os._exit(0)
        print('ready', flush=True); time.sleep(60)
        """
    )
    assert process.stdout.readline() == "ready\n"
    process.kill()
    otlp_sink.wait(lambda s: "request" in names(s), 10)
    root = next(s for s in otlp_sink.spans if s.name == "request")
    assert attribute(root, "error.type").string_value == "engine_lost"


def test_a_spawned_child_joins_the_same_agent(engine, otlp_sink):
    """multiprocessing's spawn starts from nothing and still ships."""
    script = engine.runtime.parent / "spawned.py"
    script.write_text(
        PRELUDE
        + textwrap.dedent(
            """
            import multiprocessing
            def child(): request('child'); assert rec.flush(20)
            if __name__ == '__main__':
                request('parent')
                p = multiprocessing.get_context('spawn').Process(target=child); p.start(); p.join()
                sys.exit(p.exitcode or (0 if rec.flush(20) else 3))
            """
        )
    )
    assert subprocess.run([sys.executable, script], env=engine.env, timeout=60, check=False).returncode == 0
    otlp_sink.wait(lambda s: names(s).count("request") == 2)


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="there is one CPU to run on"
)
@pytest.mark.parametrize("early", [False, True])
def test_an_engine_that_pinned_itself_does_not_pin_its_agent(engine, early):
    """vLLM's workers on CPU do, by OpenMP before we are there: the agent runs where the engine could when it started."""
    pin = "import os; os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})"
    process = engine(
        f"""
        {"" if early else pin}
        request("r")
        print(rec.flush(10), flush=True)
        sys.stdin.readline()
        """,
        **({"GOMP_CPU_AFFINITY": "0", "BEFORE_ANYTHING": pin} if early else {}),
    )
    assert process.stdout.readline() == "True\n"
    (path,) = engine.sockets()
    assert os.sched_getaffinity(agent_status(path)["pid"]) == os.sched_getaffinity(0)
    process.stdin.close()
    process.wait(20)


def test_the_agent_is_in_its_engines_session_but_not_ended_with_the_terminal(engine, otlp_sink):
    """Its niceness counts against the engine only there; Ctrl-C goes to the engine's process group, a hang-up to both."""
    process = engine("request('first'); print(rec.flush(20), flush=True); sys.stdin.readline(); request('last')")
    assert process.stdout.readline() == "True\n"
    (path,) = engine.sockets()
    agent = agent_status(path)["pid"]
    assert os.getsid(agent) == os.getsid(process.pid)
    assert os.getpgid(agent) == agent
    assert os.getpriority(os.PRIO_PROCESS, agent) == min(19, os.getpriority(os.PRIO_PROCESS, process.pid) + NICE)
    os.kill(agent, signal.SIGHUP)
    process.communicate("\n", timeout=30)
    otlp_sink.wait(lambda s: names(s).count("request") == 2)


def test_records_are_not_lost_when_the_process_exits_at_once(engine, otlp_sink):
    """A short script needs no flush of its own."""
    assert engine("request('short')").wait(30) == 0
    otlp_sink.wait(lambda s: "request" in names(s))


def test_spans_wait_while_the_collector_refuses_for_now(engine, otlp_sink):
    """503 keeps spans in the agent; doctor's facts say so; they arrive when the collector is back."""
    otlp_sink.status = 503
    process = engine("request('r'); rec.flush(20); print('ready', flush=True); sys.stdin.readline()")
    assert process.stdout.readline() == "ready\n"
    otlp_sink.wait(lambda s: len(s.requests) > 1)
    otlp_sink.status = 200
    otlp_sink.wait(lambda s: "request" in names(s), 60)
    process.communicate("\n", timeout=30)


def test_what_the_collector_refuses_for_good_is_counted(engine, otlp_sink):
    """400 drops the batch, visibly, instead of blocking what comes after it."""
    otlp_sink.status = 400
    process = engine("request('r'); rec.flush(20); print('ready', flush=True); sys.stdin.readline()")
    assert process.stdout.readline() == "ready\n"
    socket = engine.sockets()[0]

    def refused():
        return agent_status(socket)["facts"]["axonize_core.export.otlp.OtlpExport"].get("spans_refused", 0)

    deadline = time.monotonic() + 20
    while refused() < 8:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.communicate("\n", timeout=30)


def test_a_node_agent_serves_on_its_own_socket_until_sigterm(engine, otlp_sink, tmp_path):
    """axonize agent: engines join by AXONIZE_AGENT=unix://…; it survives them and ends on SIGTERM."""
    path = tmp_path / "node.sock"
    node = subprocess.Popen(
        [Path(sys.executable).parent / "axonize", "agent", "--socket", path], env=engine.env, stderr=subprocess.DEVNULL
    )
    try:
        process = engine("request('r1'); sys.exit(0 if rec.flush(20) else 1)", AXONIZE_AGENT=f"unix://{path}")
        assert process.wait(30) == 0
        otlp_sink.wait(lambda s: "request" in names(s))
        assert agent_status(path)["processes_live"] == 0
        assert engine.sockets() == []
    finally:
        node.terminate()
        assert node.wait(20) == 0
    assert not path.exists()


def test_a_runtime_directory_of_somebody_else_is_not_used(engine):
    """A directory we do not own is refused; the engine goes on, and the failure is counted."""
    if os.getuid() != 0:
        pytest.skip("only root can give a directory away")
    engine.runtime.mkdir()
    os.chown(engine.runtime, 12345, 12345)
    process = engine("request('r'); print(rec.flush(1), sum(rec.errors.values()) > 0)")
    assert process.communicate(timeout=30)[0].split() == ["False", "True"]
