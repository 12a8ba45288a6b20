"""An agent of the measurement's own, with the endpoint it exports to, and what it uses of the machine (Linux)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from axonize_core.doctor import agent_status
from axonize_core.errors import AxonizeError
from axonize_core.frames import FrameError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["BenchError", "MeasuredAgent", "running_agent", "running_sink", "started_agent"]

_START_S = 30.0
_DRAIN_S = 20.0
_STOP_S = 10.0


class BenchError(AxonizeError):
    """The measurement could not be made."""


class MeasuredAgent:
    """A node agent: what it says of itself, its CPU time and its memory; unknown where there is no /proc."""

    def __init__(self, path: Path, pid: int) -> None:
        self.path = path
        self._pid = pid

    def facts(self) -> dict[str, Any]:
        """Return what ``axonize doctor`` would be told."""
        return agent_status(self.path)

    def cpu_s(self) -> float | None:
        """Return the CPU time used so far, all threads, in seconds."""
        try:
            with open(f"/proc/{self._pid}/stat", encoding="ascii") as stat:  # noqa: PTH123 - no path to handle
                fields = stat.read().rpartition(")")[2].split()
        except OSError:
            return None
        # Fields 14 and 15 of proc(5), counted from behind the name.
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_bytes(self) -> int | None:
        """Return the resident memory."""
        try:
            with open(f"/proc/{self._pid}/statm", encoding="ascii") as statm:  # noqa: PTH123 - same
                return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return None

    def drained(self) -> dict[str, Any]:
        """Wait until all spans were exported, and return the facts."""
        deadline, before = time.monotonic() + _DRAIN_S, None
        while time.monotonic() < deadline:
            facts = self.facts()
            now = (facts["counts"], counters(facts))
            if now == before and not counters(facts).get("spans_waiting"):
                break
            before = now
            time.sleep(0.6)
        return facts


def counters(facts: Mapping[str, Any]) -> dict[str, int]:
    """Return the numbers that plugins state of themselves, added up by name."""
    found: dict[str, int] = {}
    for own in facts["facts"].values():
        for name, value in own.items():
            if isinstance(value, int):
                found[name] = found.get(name, 0) + value
    return found


@contextmanager
def running_sink() -> Iterator[str]:
    """Run an endpoint that keeps nothing, and give its URL."""
    command = [sys.executable, "-m", "axonize_core.bench.sink"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None  # noqa: S101 - asked for above
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.communicate()


def started_agent(runtime: Path) -> MeasuredAgent:
    """Return the agent that an engine with this runtime directory started.

    Raises:
        BenchError: there is none.
    """
    for path in runtime.glob("agent-*.sock"):
        return MeasuredAgent(path, agent_status(path)["pid"])
    raise BenchError(f"no agent was started in {runtime}")


@contextmanager
def running_agent(path: Path, environment: Mapping[str, str]) -> Iterator[MeasuredAgent]:
    """Run an agent on this socket; its log lies beside it.

    Raises:
        BenchError: it did not start.
    """
    command = [sys.executable, "-m", "axonize_core.agent", "--socket", str(path)]
    log_path = path.with_suffix(".log")
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        agent = MeasuredAgent(path, process.pid)
        _wait(agent, process, log_path)
        yield agent
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(agent: MeasuredAgent, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            agent.facts()
        except (OSError, FrameError) as e:
            if process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(f"the agent did not start:\n{log_path.read_text(errors='replace')}") from e
            time.sleep(0.05)
        else:
            return
