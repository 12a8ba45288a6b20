"""The supervisor with its real children: ready, restarted, drained, never orphaned, never twice."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest

from axonize_server.stats import read_collector, read_stats, read_writer
from otlp_bodies import trace_body, trace_request

COMMAND = "from axonize_core.cli import main; main()"


class Collector:
    """``axonize collector`` on free ports."""

    def __init__(self, data_dir, *options):
        self.data_dir = data_dir
        data_dir.mkdir(exist_ok=True)
        with (data_dir / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    COMMAND,
                    "collector",
                    "--data-dir",
                    str(data_dir),
                    "--http-port",
                    "0",
                    "--api-port",
                    "0",
                    "--grpc-port",
                    "0",
                    "--drain-s",
                    "20",
                    *options,
                ],
                stderr=log,
                stdout=log,
            )

    def wait(self, condition, timeout_s=60):
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)
        return found

    def ready(self):
        self.wait(lambda: read_collector(self.data_dir).get("pid") == self.process.pid)
        return self

    @property
    def log(self):
        return (self.data_dir / "log").read_text()

    @property
    def http_port(self):
        return read_collector(self.data_dir)["http_port"]

    def post(self, body):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.http_port}/v1/traces", body, {"content-type": "application/x-protobuf"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status

    def trace(self, trace_id):
        url = f"http://127.0.0.1:{read_writer(self.data_dir)['api_port']}/api/v1/traces/{trace_id.hex()}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.loads(answer.read())
        except OSError as error:
            with contextlib.suppress(AttributeError):
                error.close()
            return None

    def children(self):
        return psutil.Process(self.process.pid).children()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


@pytest.fixture
def make_collector(tmp_path):
    """Starts collectors; their children end with them."""
    with contextlib.ExitStack() as stack:

        def make(*options, data_dir=tmp_path / "data"):
            collector = Collector(data_dir, *options)
            stack.callback(collector.close)
            return collector

        yield make


def a_trace(seed):
    request = trace_request(seed, spans=1)
    return request.SerializeToString(), request.resource_spans[0].scope_spans[0].spans[0].trace_id


def test_what_is_acknowledged_before_sigterm_is_stored(make_collector):
    """SIGTERM seals, drains the spool into the store, ends every process, and exits with 0."""
    collector = make_collector("--workers", "2").ready()
    assert len(collector.children()) == 3
    traces = [a_trace(seed) for seed in range(20)]
    for body, _ in traces:
        assert collector.post(body) == 200
    children = collector.children()
    collector.process.terminate()
    assert collector.process.wait(40) == 0
    assert not any(child.is_running() for child in children)
    assert list((collector.data_dir / "spool").glob("*/*")) == []
    again = make_collector().ready()
    again.wait(lambda: all(again.trace(trace_id) for _, trace_id in traces))


def test_a_child_that_dies_is_restarted_and_clients_only_wait(make_collector):
    """The supervisor keeps the port open, counts the restart, and what was acknowledged arrives."""
    collector = make_collector().ready()
    body, trace_id = a_trace(1)
    assert collector.post(body) == 200
    for pid in (read_stats(collector.data_dir)[0]["pid"], read_writer(collector.data_dir)["pid"]):
        os.kill(pid, signal.SIGKILL)
    other, other_id = a_trace(2)
    assert collector.post(other) == 200
    collector.wait(lambda: read_collector(collector.data_dir)["restarts"] == {"writer": 1, "receivers": 1})
    collector.wait(lambda: collector.trace(trace_id) and collector.trace(other_id))


def test_no_process_outlives_a_killed_supervisor(make_collector):
    """After kill -9 of the supervisor its children end by themselves, orderly, and the data dir is free."""
    collector = make_collector().ready()
    body, trace_id = a_trace(3)
    assert collector.post(body) == 200
    children = collector.children()
    collector.process.kill()
    collector.process.wait()
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert (len(gone), alive) == (2, [])
    again = make_collector().ready()
    again.wait(lambda: again.trace(trace_id))


def test_two_collectors_on_one_data_directory_are_one_too_many(make_collector):
    """The second says who has it and what to do; the first goes on."""
    first = make_collector().ready()
    second = make_collector()
    assert second.process.wait(30) != 0
    assert f"pid {first.process.pid}" in second.log
    assert "--data-dir" in second.log
    assert first.post(trace_body()) == 200


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_in_use_is_named(make_collector, workers):
    """Also by receivers that would share it: nobody is joined silently."""
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = str(taken.getsockname()[1])
        collector = make_collector("--http-port", port, "--workers", workers)
        assert collector.process.wait(30) != 0
    assert f"127.0.0.1:{port}" in collector.log
    assert "--http-port" in collector.log


def test_a_child_that_cannot_be_configured_ends_the_collector(make_collector):
    """A gRPC port that is taken is not retried for ever: exit code 1, the cause in the log."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        collector = make_collector("--grpc-port", str(taken.getsockname()[1]))
        assert collector.process.wait(40) == 1
    assert "--grpc-port" in collector.log
