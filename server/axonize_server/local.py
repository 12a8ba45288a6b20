"""A collector of one's own for a while: started as a child process, ended with it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from axonize_core.errors import AxonizeError
from axonize_server.client import ApiClient

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["LocalCollector", "LocalCollectorError", "free_port", "log_tail", "port_is_free"]

_POLL_S = 0.1
_STOP_S = 30.0
_TAIL_LINES = 15
_COMMAND = "from axonize_core.cli import main; main()"


class LocalCollectorError(AxonizeError):
    """The collector did not start; the message ends with the tail of its log."""


class LocalCollector:
    """``axonize collector`` on loopback ports, its output in ``<data-dir>/collector.log``."""

    def __init__(self, data_dir: Path, *, http_port: int, api_port: int) -> None:
        self.data_dir = data_dir
        self.otlp_url = f"http://127.0.0.1:{http_port}"
        self.client = ApiClient(f"http://127.0.0.1:{api_port}")
        self.log = data_dir / "collector.log"
        self._options = ["--data-dir", str(data_dir), "--http-port", str(http_port), "--api-port", str(api_port)]
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start it, and end it when the block is left."""
        try:
            self.start()
            yield
        finally:
            self.stop()

    def start(self, *, timeout_s: float = 60.0) -> None:
        """Start it and wait until it can store and answer.

        Raises:
            LocalCollectorError: it ended, or was not ready in time.
        """
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, "collector", *self._options, "--grpc-port", "0"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(os.environ),
                cwd=self.data_dir,  # the embedded engine leaves a cache where it runs
                start_new_session=True,  # Ctrl-C reaches it through stop(), after the last answer was read
            )
        deadline = time.monotonic() + timeout_s
        while not self.client.ready():
            if (code := self._process.poll()) is not None:
                raise LocalCollectorError(f"the collector ended with exit code {code}:\n{log_tail(self.log)}")
            if time.monotonic() > deadline:
                raise LocalCollectorError(f"the collector was not ready in {timeout_s:g} s:\n{log_tail(self.log)}")
            time.sleep(_POLL_S)

    @property
    def pid(self) -> int:
        """The supervisor's process id, and that of the group of its children."""
        assert self._process is not None  # noqa: S101 - asked of a started collector
        return self._process.pid

    def stop(self) -> int | None:
        """End it, giving it time to store what it acknowledged; return its exit code, None if never started."""
        if self._process is None:
            return None
        self._process.terminate()
        try:
            return self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def port_is_free(port: int) -> bool:
    """Return whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return a loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def log_tail(log: Path) -> str:
    """Return the last lines of a log, indented; what is not there is said."""
    try:
        lines = log.read_text(errors="replace").splitlines()[-_TAIL_LINES:]
    except OSError as e:
        return f"  ({e})"
    return "\n".join(f"  {line}" for line in lines) or "  (its log is empty)"


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without settings of a collector someone else runs here."""
    kept = {"AXONIZE_CONFIG", "AXONIZE_STORE", "AXONIZE_REGISTRY", "AXONIZE_HOST"}
    return {name: value for name, value in given.items() if name not in kept}
