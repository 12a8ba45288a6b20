"""``axonize demo``: one command, from a served model to what the store knows about it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest

from axonize_core.agent import FIRST_CLIENT_S

MAIN = "from axonize_core.cli import main; main()"
AXONIZE = [sys.executable, "-c", MAIN]
# Who runs the tests in the background passes on that Ctrl-C is ignored; on a terminal it is not.
HEAR = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
ON_A_TERMINAL = [sys.executable, "-c", f"{HEAR}; {MAIN}"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment without settings of whoever runs the tests, and a directory for temporary data."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AXONIZE_", "OTEL_"))}
    return kept | {
        "TMPDIR": str(tmp_path_factory.mktemp("tmp")),
        "AXONIZE_RUNTIME_DIR": str(tmp_path_factory.mktemp("run")),
    }


def _axonize(environment, *arguments, timeout_s=240):
    return subprocess.run(
        [*AXONIZE, *arguments], capture_output=True, text=True, env=environment, timeout=timeout_s, check=False
    )


def _children_left(environment, within_s=15):
    """Return processes of ours that still run on this test's directories when the time is up."""
    deadline = time.monotonic() + within_s
    while True:
        left = [process for process in psutil.process_iter() if _belongs(process, environment)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def _belongs(process, environment):
    try:
        ours = process.environ().get("AXONIZE_RUNTIME_DIR") == environment["AXONIZE_RUNTIME_DIR"]
        return ours and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@pytest.mark.xdist_group("demo")
def test_the_figures_come_back_from_the_store(environment, tmp_path):
    """``--once --json`` exits 0 with one JSON line: nothing dropped, a device that says it is simulated."""
    done = _axonize(environment, "demo", "--once", "--json", "--requests", "20", "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stdout
    figures = json.loads(lines[0])
    assert list(figures) == ["requests", "spans", "batches", "dropped", "store_rows", "gpu_provenance"]
    assert figures["requests"] == 20
    assert figures["dropped"] == 0
    assert figures["batches"] > 20
    # A request that was served has its own span, queue, prefill and, beyond one token, decode; each engine step has
    # one, and the failed request at least its own.
    assert figures["spans"] >= figures["batches"] + 19 * 3 + 1
    assert figures["store_rows"] > figures["spans"] + figures["batches"]
    assert figures["gpu_provenance"] in ("simulated", "measured")
    assert _children_left(environment) == []


@pytest.mark.xdist_group("demo")
def test_what_a_person_sees(environment):
    """The requests, one waterfall, one batch with its members and the next commands; the data is gone after."""
    done = _axonize(environment, "demo", "--once", "--requests", "12")
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert "12 requests" in shown
    assert "ValueError" in shown
    for phase in ("├─ queue", "├─ prefill", "└─ decode"):
        assert phase in shown
    assert "Who shared its first step" in shown
    assert " prefill + " in shown
    assert "What next" in shown
    assert list(Path(environment["TMPDIR"]).glob("axonize-*")) == []


class Terminal:
    """``axonize demo`` on a terminal of its own, as a person runs it."""

    def __init__(self, environment, *arguments):
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 50, 100, 0, 0))
        self.process = subprocess.Popen(
            [*ON_A_TERMINAL, "demo", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment | {"TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(slave)
        self.text = ""

    def read_until(self, words, within_s=120):
        """Collect what is shown until the words appear, or the process ends."""
        deadline = time.monotonic() + within_s
        while words not in self.text and time.monotonic() < deadline and self._look():
            pass
        assert words in self.text, self.text

    def wait(self, within_s=60):
        """Return the exit code; like a real terminal, this one takes what is written meanwhile."""
        deadline = time.monotonic() + within_s
        while self.process.poll() is None and time.monotonic() < deadline:
            self._look()
        return self.process.wait(0)

    def _look(self):
        """Take what is there, at most 0.2 s long; False when nobody writes any more."""
        return not select.select([self._master], [], [], 0.2)[0] or self._read()

    def _read(self):
        try:
            self.text += os.read(self._master, 65536).decode(errors="replace")
        except OSError:
            return False
        return True

    def interrupt(self):
        """Do what Ctrl-C does: the signal goes to the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def close(self):
        """End whatever is left."""
        if self.process.poll() is None:
            self.process.terminate()
            self.wait()
        os.close(self._master)


@pytest.fixture
def terminal(environment):
    """Start demos on terminals; none outlives the test."""
    started = []

    def start(*arguments):
        started.append(Terminal(environment, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.mark.xdist_group("demo")
def test_the_collector_stays_until_ctrl_c(environment, terminal):
    """What the demo suggests next works while it waits; Ctrl-C ends it in order, with nothing left."""
    demo = terminal("--requests", "8")
    demo.read_until("Ctrl-C ends it")
    assert "\x1b[" in demo.text
    (api,) = set(re.findall(r"its API on (http://127\.0\.0\.1:\d+)", demo.text))
    assert _axonize(environment, "requests", "--status", "error", "--api", api).stdout.startswith("1 request")
    demo.interrupt()
    assert demo.wait() == 0
    assert _children_left(environment) == []


@pytest.mark.xdist_group("demo")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ended_half_way_it_leaves_nothing(environment, terminal, how):
    """While the model is served, Ctrl-C and SIGTERM end all processes and remove the data."""
    demo = terminal("--requests", "300")
    demo.read_until("serving it")
    demo.interrupt() if how == signal.SIGINT else demo.process.send_signal(how)
    assert demo.wait() != 0
    # An agent whose process ended before it could connect waits half a minute for another.
    assert _children_left(environment, FIRST_CLIENT_S + 15) == []
    assert list(Path(environment["TMPDIR"]).glob("axonize-demo-*")) == []


@pytest.mark.xdist_group("demo")
def test_a_switched_off_axonize_is_said(environment):
    """The demo does not work around the user's off switch, and says which one it is."""
    done = _axonize(environment | {"AXONIZE_DISABLED": "true"}, "demo", "--once")
    assert done.returncode != 0
    assert "switched off by AXONIZE_DISABLED" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.xdist_group("demo")
def test_a_collector_that_does_not_start_shows_its_log(environment):
    """The error names the exit code and ends with what the collector said."""
    done = _axonize(environment | {"AXONIZE_SPOOL_MAX_BYTES": "1"}, "demo", "--once")
    assert done.returncode != 0
    assert "the collector ended with exit code" in done.stderr
    assert "--spool-max-bytes (AXONIZE_SPOOL_MAX_BYTES) cannot be '1'" in done.stderr
    assert _children_left(environment) == []


def test_without_a_framework_the_next_step_is_named(environment):
    """torch missing is one line with the pip command."""
    hidden = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'torch' else find(name, package)\n"
        "from axonize_core.cli import main; main()"
    )
    command = [sys.executable, "-c", hidden, "demo", "--once"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=150, check=False)
    assert done.returncode != 0
    assert "pip install torch" in done.stderr
    assert done.stderr.count("\n") == 1
