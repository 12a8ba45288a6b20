"""Programs that record, run in odd places: their agents are found, waited for, and never left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import psutil
import pytest

from fix_otlp import OtlpSink

PRELUDE = """
import json, os, sys, time
from axonize_core.frames import Kind
from axonize_core.recorder import get_recorder
rec = get_recorder()

def request(name):
    src = rec.source("transformers", "", "tiny", "hf", ("cpu", 0, None))
    seq, run, times = rec.next_handle(), rec.next_handle(), []
    rec.emit(Kind.REQUEST, seq, (src, rec.clock(), name, None, "text_completion", 3, None))
    rec.emit(Kind.RUN, run, (src, (seq,), (3,), "generate", times))
    times += [rec.clock(), rec.clock(), -rec.clock()]
    rec.emit(Kind.RUN_END, run, (2, None))
    rec.emit(Kind.REQUEST_END, seq, ("length", 3, 2, None, None))

def facts(flush_s=15.0):
    flushed = rec.close(flush_s)
    return {"flushed": flushed, "lost": rec.queued() + rec.dropped_total(), "errors": dict(rec.errors)}

def report(flush_s=15.0):
    print(json.dumps(facts(flush_s)), flush=True)
"""
DOCTOR = "from axonize_core.cli import main; main()"


DEFAULT_DIRECTORIES = [Path(base) / f"axonize-{uid}" for base in ("/tmp", "/dev/shm") for uid in (os.getuid(), 12345)]


def _files(directory):
    return set(directory.iterdir()) if directory.is_dir() else set()


class Place:
    """Starts programs against one OTLP endpoint; ``runtime`` is their runtime directory unless they choose another."""

    def __init__(self, directory, sink):
        self.directory = directory
        self.runtime = directory / "run"
        self.sink = sink
        self._mark = f"test.place={uuid.uuid4().hex}"
        self._env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AXONIZE_", "OTEL_", "XDG_"))},
            "AXONIZE_RUNTIME_DIR": str(self.runtime),
            "AXONIZE_STATE_DIR": str(directory / "state"),
            "AXONIZE_GPU_PROVIDER": "none",
            "OTEL_EXPORTER_OTLP_ENDPOINT": sink.url,
            "OTEL_RESOURCE_ATTRIBUTES": self._mark,
        }
        self._programs = []
        self._before = {path: _files(path) for path in DEFAULT_DIRECTORIES}

    def env(self, **changes):
        """Return the environment with changes; None takes a variable away."""
        merged = {**self._env, **changes}
        return {name: value for name, value in merged.items() if value is not None}

    def start(self, code, *, prefix=(), python=sys.executable, arguments=(), env=None, **popen):
        """Start a program, behind a command that changes its surroundings."""
        # In changed surroundings coverage could not write its data, and would complain.
        unmeasured = {"COVERAGE_PROCESS_CONFIG": None} if prefix else {}
        program = subprocess.Popen(
            [*prefix, python, "-c", PRELUDE + textwrap.dedent(code), *arguments],
            env=self.env(**unmeasured, **(env or {})),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **{"cwd": self.directory, **popen},  # elsewhere than in a checkout, whose packages would come first
        )
        self._programs.append(program)
        return program

    def run(self, code, **how):
        """Run a program to its end, which must be a good one, and return the facts it reported."""
        program = self.start(code, **how)
        stdout, stderr = program.communicate(timeout=60)
        assert program.returncode == 0, stderr
        assert stderr == ""
        return json.loads(stdout.splitlines()[-1]) if stdout else None

    def doctor(self, *, prefix=(), env=None):
        """Return what ``axonize doctor`` finds about agents in the same surroundings."""
        done = subprocess.run(
            [*prefix, sys.executable, "-c", DOCTOR, "doctor", "--json"],
            env=self.env(AXONIZE_API_URL="http://127.0.0.1:9", **(env or {})),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=self.directory,
        )
        assert done.stdout, done.stderr
        return [f for f in json.loads(done.stdout) if f["part"] == "agent"]

    def arrived(self, name, count=1):
        """Wait until the request of this id has arrived; fail when it does not."""
        self.sink.wait(lambda _: self.requests().count(name) >= count)

    def requests(self):
        """Return the ids of all requests that arrived."""
        attributes = [a for s in list(self.sink.spans) if s.name == "request" for a in s.attributes]
        return [a.value.string_value for a in attributes if a.key == "ai.request.id"]

    def agents(self):
        """Return the agent processes that programs of this place started."""
        return [p for p in psutil.process_iter() if self._is_agent(p)]

    def agents_ended(self):
        """Wait for the agents of programs that ended, which linger for a second; return those that are still there."""
        deadline = time.monotonic() + 15
        while (left := self.agents()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def _tidy(self):
        """Remove what agents left in the directories that serve where none was asked for; users may have some there."""
        for directory, before in self._before.items():
            for path in _files(directory) - before:
                path.unlink(missing_ok=True)
            if not before and directory.is_dir() and not _files(directory):
                directory.rmdir()

    def _is_agent(self, process):
        try:
            ours = process.environ().get("OTEL_RESOURCE_ATTRIBUTES", "").startswith(self._mark)
            return ours and "axonize_core.agent" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def close(self):
        """End programs; agents have to end by themselves."""
        for program in self._programs:
            if program.poll() is None:
                program.kill()
            program.communicate()
        left = self.agents_ended()
        for agent in left:
            agent.kill()
        self._tidy()
        # One that ended waits only for the system's init to take note of it.
        left = [agent for agent in left if agent.is_running() and agent.status() != psutil.STATUS_ZOMBIE]
        assert not left, f"agents outlived their programs: {left}"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A place of the test file's own; requests are told apart by their ids."""
    sink = OtlpSink()
    place = Place(tmp_path_factory.mktemp("place"), sink)
    yield place
    place.close()
    sink.close()


def usable(*command):
    """Skip, with the reason, where the machine cannot change the surroundings this way; return the command."""
    tried = subprocess.run(
        [*command, sys.executable, "-c", "import msgspec"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"{' '.join(command)[:80]} cannot be used here: {tried.stderr.strip()[-200:]}")
    return command
