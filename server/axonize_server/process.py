"""One child process of the collector: started, watched, restarted with backoff, ended."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from axonize_server.settings import Settings

__all__ = ["ENVIRONMENT", "REFUSED_TO_START", "ChildProcess"]

# sysexits.h EX_CONFIG: starting again would end the same way.
REFUSED_TO_START: Final = 78
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 15.0
_SETTLED_S = 30.0
ENVIRONMENT: Final[dict[str, dict[str, str]]] = {
    # glibc gives a parsed request's memory back to the kernel and fetches it again for the next one: keeping it
    # halves a receiver's CPU. Other C libraries ignore these.
    "receiver": {
        "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
        "MALLOC_TOP_PAD_": str(16 << 20),
    },
    "writer": {
        # ClickHouse in-process takes its server time zone from here.
        "TZ": "UTC",
        # Its allocator gives memory back within 5 s, and fetches it anew for the next segment: a tenth of what an
        # insert costs. What is not used for a minute goes back all the same.
        "JE_MALLOC_CONF": "dirty_decay_ms:60000",
    },
}


class ChildProcess:
    """Runs ``axonize_server.child`` in a role; used by the supervisor's thread only."""

    def __init__(self, settings: Settings, role: str, *arguments: str, fds: tuple[int, ...] = ()) -> None:
        self.role = role
        self.restarts = 0
        self._settings, self._arguments, self._fds = settings, arguments, fds
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = self._restart_at = 0.0
        self._wait_s = _FIRST_WAIT_S

    @property
    def pid(self) -> int | None:
        """Of the running or last process."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process; it gets its settings, and with the pipe's end its order to stop, from us.

        Its own session keeps a terminal's Ctrl-C from ending the writer before the receivers.
        """
        self._started_at, self._restart_at = time.monotonic(), 0.0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "axonize_server.child", self.role, *self._arguments],
            stdin=subprocess.PIPE,
            pass_fds=self._fds,
            env={**os.environ, **ENVIRONMENT[self.role]},
            start_new_session=True,
        )
        assert self._process.stdin is not None  # noqa: S101 - we asked for a pipe
        try:
            self._process.stdin.write(self._settings.model_dump_json(exclude_none=True).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it died already: the exit code will say so
            return

    def exit_code(self) -> int | None:
        """Of a process that has ended."""
        return self._process.poll() if self._process else None

    def may_restart(self) -> bool:
        """Whether its backoff is over; the first call after a death starts it."""
        now = time.monotonic()
        if not self._restart_at:
            settled = now - self._started_at > _SETTLED_S
            self._wait_s = _FIRST_WAIT_S if settled else min(2 * self._wait_s, _LONGEST_WAIT_S)
            self._restart_at = now + self._wait_s
        return now >= self._restart_at

    def restart(self) -> None:
        """Start again and count it."""
        self._close_pipe()
        self.restarts += 1
        self.start()

    def terminate(self) -> None:
        """Ask it to end."""
        if self._process and self._process.poll() is None:
            self._process.terminate()

    def wait(self, limit_s: float) -> bool:
        """Wait for its end, at last with SIGKILL; say whether it ended by itself."""
        if self._process is None:
            return True
        try:
            self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return False
        else:
            return True
        finally:
            self._close_pipe()

    def _close_pipe(self) -> None:
        if self._process and self._process.stdin:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                return
