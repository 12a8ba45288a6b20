"""A real vLLM, served or in one process, with Axonize's agent sending to a capture of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vllm_capture import Capture

__all__ = ["FIRST", "Server", "Surroundings", "running_first"]

READY_S, AGENT_STARTS_S = 180.0, 15.0
END_S = 60.0
AGENT_END_S = 30.0
OFFLINE_S = 180.0
FIRST = (os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
"""Before all that is not; for a thread itself, and not for what it starts."""
LATER = 10

# Small and quiet: 1 GiB for keys and values, one thread (more make a step 20 times longer), no network.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CACHE_ROOT": f"{sys.prefix}/vllm-cache",
}
SMALL = ("--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager", "--max-model-len", "1024")
OURS = ("AXONIZE_", "OTEL_", "VLLM_", "XDG_", "COV", "PYTEST_")

OFFLINE = """
import json
from vllm import LLM, SamplingParams

def make_llm(**more):
    return LLM(MODEL, dtype="float32", enforce_eager=True, max_model_len=1024,
               distributed_executor_backend="uni", **more)

def report(facts):
    print("facts: " + json.dumps(facts), flush=True)
"""


@contextlib.contextmanager
def running_first() -> Iterator[None]:
    """Let the calling thread run before whatever spins, where that is allowed: it is a client with a core of its own."""
    try:
        os.sched_setscheduler(0, *FIRST)
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _threads(pid: int) -> list[int]:
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


class Surroundings:
    """Directories, environment and capture of one engine; ``directory/run`` and ``directory/state`` are its agent's."""

    def __init__(self, directory: Path, capture: Capture, env: dict[str, str | None] | None = None):
        self.directory, self.capture, self.runtime = directory, capture, directory / "run"
        merged = {
            **{name: value for name, value in os.environ.items() if not name.startswith(OURS)},
            **QUIET,
            "AXONIZE_RUNTIME_DIR": str(self.runtime),
            "AXONIZE_STATE_DIR": str(directory / "state"),
            "AXONIZE_GPU_PROVIDER": "none",
            "OTEL_EXPORTER_OTLP_ENDPOINT": capture.url,
            **(env or {}),
        }
        self.env = {name: value for name, value in merged.items() if value is not None}

    def agents(self) -> list[psutil.Process]:
        """Return the agent processes that programs in these surroundings started."""
        return [p for p in psutil.process_iter() if self._is_agent(p)]

    def _is_agent(self, process: psutil.Process) -> bool:
        try:
            return (
                process.environ().get("AXONIZE_RUNTIME_DIR") == str(self.runtime)
                and "axonize_core.agent" in process.cmdline()
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False

    def end_agents(self) -> None:
        """Wait until the agents have ended, as they do by themselves; fail, and kill them, when they do not."""
        deadline = time.monotonic() + AGENT_END_S
        while (left := self.agents()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for agent in left:
            agent.kill()
        assert not left, f"agents outlived their engine: {left}"

    def offline(self, model: Path, code: str, *, axonize: bool = True):
        """Run code with ``make_llm(**LLM's)``, ``SamplingParams`` and ``report(facts)``, and return the facts.

        In one process, unless the surroundings say ``VLLM_ENABLE_V1_MULTIPROCESSING=1``.

        Raises:
            AssertionError: it failed, or took longer than three minutes.
        """
        env = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", **self.env, **({"AXONIZE_ENABLED": "1"} if axonize else {})}
        program = OFFLINE.replace("MODEL", repr(str(model))) + textwrap.dedent(code)
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, env=env, cwd=self.directory, capture_output=True, text=True, timeout=OFFLINE_S, check=False
        )
        facts = [line for line in done.stdout.splitlines() if line.startswith("facts: ")]
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return json.loads(facts[-1].removeprefix("facts: ")) if facts else None


class Server:
    """``vllm serve`` of the tiny model on a free port of loopback, from the start of its process to ``close()``."""

    def __init__(self, surroundings: Surroundings, model: Path, flags: tuple[str, ...], *, axonize: bool = True):
        self.surroundings, self.capture = surroundings, surroundings.capture
        self._axonize = axonize
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.base_url = f"http://127.0.0.1:{self.port}"
        vllm = str(Path(sys.executable).with_name("vllm"))
        asked = ("--plugin", "axonize") if axonize else ()
        self.command = [vllm, "serve", str(model), *asked, "--host", "127.0.0.1", "--port", str(self.port), *SMALL]
        self.command += flags
        self.log_path = surroundings.directory / f"server-{self.port}.log"
        self.returncode: int | None = None
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                env=surroundings.env,
                cwd=surroundings.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # by which what is left of it is found
            )

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_ready(self) -> None:
        """Wait until ``/health`` answers 200.

        Raises:
            AssertionError: it ended, or was not ready in three minutes; with its log.
        """
        deadline = time.monotonic() + READY_S
        while not self.is_healthy():
            assert self._process.poll() is None, f"the server ended with {self._process.returncode}:\n{self.log}"
            assert time.monotonic() < deadline, f"the server is not ready after {READY_S:.0f} s:\n{self.log}"
            time.sleep(0.2)
        self._let_the_front_end_run()
        self._let_the_agent_start(time.monotonic() + AGENT_STARTS_S)

    def _let_the_agent_start(self, deadline: float) -> None:
        """Wait a while for the agent, where there will be one: beside engines that spin it starts late."""
        if self._axonize and "AXONIZE_AGENT" not in self.surroundings.env:
            while not list(self.surroundings.runtime.glob("agent-*.sock")) and time.monotonic() < deadline:
                time.sleep(0.1)

    def _let_the_front_end_run(self) -> None:
        """Let the API server run when it has something to do, as where it has a core.

        The engine core and its worker wait by spinning. On two cores the API server is told of a token only when
        their slice of time is over: whole answers then come at once, and nobody can go away in the middle of one.
        """
        try:
            for thread in _threads(self.pid):
                os.sched_setscheduler(thread, *FIRST)
        except PermissionError:
            for pid in (*self.engine_pids, *self.worker_pids):
                for thread in _threads(pid):
                    os.setpriority(os.PRIO_PROCESS, thread, LATER)

    def is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.base_url}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    @property
    def pid(self) -> int:
        """The API server's."""
        return self._process.pid

    @property
    def engine_pids(self) -> list[int]:
        return self._titled("EngineCore")

    @property
    def worker_pids(self) -> list[int]:
        return self._titled("Worker")

    def _titled(self, title: str) -> list[int]:
        """Return the processes of this server that vLLM calls ``VLLM::<title>…``."""
        found = []
        for process in self._members():
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                if any(f"VLLM::{title}" in word for word in process.cmdline()):
                    found.append(process.pid)
        return found

    def _members(self) -> list[psutil.Process]:
        """Return all that is alive of this server: its process group, which the agent leaves."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getpgid(process.pid) == self._process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def stop(self) -> int:
        """End it by SIGTERM, and return its exit code once all of its processes are gone."""
        if self.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            self._wait()
        assert self.returncode is not None
        return self.returncode

    def _wait(self) -> None:
        self.returncode = self._process.wait(END_S)
        deadline = time.monotonic() + END_S
        while self._members():
            assert time.monotonic() < deadline, f"left of the server: {self._members()}"
            time.sleep(0.1)

    def close(self, *, end_agents: bool = True) -> None:
        """Kill whatever is left of it; its agent ends by itself, unless it has another engine."""
        for process in self._members():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._wait()
        if end_agents:
            self.surroundings.end_agents()
