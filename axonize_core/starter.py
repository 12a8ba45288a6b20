"""Starting the agent: one per socket, and no child of the engine's for longer than its own start takes.

A child that lives as long as the engine would end up in the ``os.wait()`` of the engine's host: a server that waits
for all its workers would wait for us. So the agent leaves its parent once it has loaded (``agent.main``); what ends
early, with a status, failed. Runs on the shipper's thread.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from axonize_core.cpus import CPUS
from axonize_core.runtime_dir import private_directory

if TYPE_CHECKING:
    from collections.abc import Callable

    from axonize_core.settings import Settings

__all__ = ["AgentStarter", "agent_command", "reap", "wait_for_end"]

START_TIMEOUT_S = 30.0
_LOG_LIMIT_BYTES = 1024 * 1024
_FIRST_FREE_FD = 3


class AgentStarter:
    """Starts an agent process unless one is coming up, in this process or another."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self.failure = ""
        self._settings = settings
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._lock_fd: int | None = None

    def ensure(self, path: Path) -> None:
        """Start an agent for this socket unless one is coming up; ``failure`` says how the last start failed.

        Raises:
            OSError: no process can be started, or nothing can be written to the directory.
            ConfigurationError: the directory is not ours.
        """
        if self._coming_up(path):
            return
        directory = private_directory(path.parent)
        with _lock_file(path).open("a") as lock:
            self._lock_fd = lock_fd = _above_stdio(lock)
            try:
                if _locked(lock_fd):
                    self._spawn(path, directory, lock_fd)
            finally:
                self._lock_fd = None
                os.close(lock_fd)

    def forget(self) -> None:
        """Let go of a start that is still under way, here or in the process we were forked from; it goes on."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None
        if self._process is not None and self._process.poll() is None:
            self._process.returncode = 0  # or Popen would complain that nobody waits
        self._process = None

    def settle(self) -> None:
        """Take the first process of a start that went well off the process table."""
        if self._process is not None and self._process.poll() is not None:
            self._process, self.failure = None, ""

    def _coming_up(self, path: Path) -> bool:
        if self._process is None:
            return False
        status = self._process.poll()
        if status is None and self._clock() - self._started_at < START_TIMEOUT_S:
            return True
        if status is None:
            self._process.kill()
            status = self._process.wait()
        self._process = None
        self.failure = f"the agent ended at its start with status {status}, see {_log_file(path)}" if status else ""
        return False

    def _spawn(self, path: Path, directory: Path, lock_fd: int) -> None:
        # The agent inherits the lock and holds it for its life: one agent per socket.
        log_path = _log_file(path)
        mode = "wb" if log_path.exists() and log_path.stat().st_size > _LOG_LIMIT_BYTES else "ab"
        with log_path.open(mode) as log:
            self._process = subprocess.Popen(
                [*agent_command(self._settings, path), "--shared", "--cpus", ",".join(map(str, CPUS))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                pass_fds=(lock_fd,),
            )
        self._started_at = self._clock()


def agent_command(settings: Settings, path: Path) -> list[str]:
    """Return the command line of an agent that listens on ``path``."""
    return [_interpreter(settings), "-m", "axonize_core.agent", "--socket", str(path)]


def reap(pid: int) -> int:
    """Take an ended agent off the process table where that is ours to do: PID 1 inherits everybody's orphans.

    Returns:
        The pid while it is our child and lives, else 0: nothing of ours has this pid any more.
    """
    try:
        ended = pid <= 1 or os.waitpid(pid, os.WNOHANG)[0]
    except OSError:
        return 0
    return 0 if ended else pid


def wait_for_end(path: Path, timeout_s: float) -> bool:
    """Wait until the agent of this socket let go of its lock; False when that took too long."""
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(OSError), _lock_file(path).open("a") as lock:
        while not (ended := _locked(lock.fileno())) and time.monotonic() < deadline:
            time.sleep(0.02)
        return ended
    return False


def _locked(lock_fd: int) -> bool:
    """Take the lock unless another process, an agent mostly, holds it."""
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_file(path: Path) -> Path:
    return path.with_suffix(".lock")


def _log_file(path: Path) -> Path:
    return path.with_suffix(".log")


def _above_stdio(lock: IO[str]) -> int:
    """Return a copy of the file that no standard stream can take the place of, as in a host that closed its own."""
    return fcntl.fcntl(lock, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD)


def _interpreter(settings: Settings) -> str:
    """Return a Python for the agent; an embedded interpreter has an empty or foreign sys.executable."""
    if settings.agent_python:
        return settings.agent_python
    if sys.executable and "python" in Path(sys.executable).name:
        return sys.executable
    return str(Path(sys.prefix) / "bin" / "python3")
