"""``axonize collector``: one supervisor, N receivers, one writer.

The supervisor owns the listening sockets, so that clients wait instead of being refused while a receiver is
restarted. It does no work of its own: it starts its children, restarts them when they die, and ends them in
order: receivers first, so that the writer can store what they sealed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import threading
import time
from typing import TYPE_CHECKING

import structlog

from axonize_core.errors import ConfigurationError
from axonize_server.listeners import listen
from axonize_server.logs import configure_logs
from axonize_server.process import REFUSED_TO_START, ChildProcess
from axonize_server.spool import SIGNALS, recover
from axonize_server.stats import read_stats, read_writer, write_collector

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from axonize_server.settings import Settings

__all__ = ["Collector", "CollectorRunningError", "run"]

_log = structlog.get_logger("axonize.collector")
_POLL_S = 0.1
_GRACE_S = 10.0


class CollectorRunningError(ConfigurationError):
    """Another collector works in this data directory."""


def run(settings: Settings) -> int:
    """Collect until SIGTERM or SIGINT; call it in a process's main thread.

    Returns:
        0 after an orderly end, 1 when a child refused to start (its log says why).

    Raises:
        CollectorRunningError: The data directory is in use.
        ConfigurationError: The address cannot be listened on.
    """
    configure_logs()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with _locked(settings.data_dir):
        return Collector(settings).run(stop)


class Collector:
    """The supervisor; main thread only."""

    def __init__(self, settings: Settings) -> None:
        for name in SIGNALS:
            (settings.spool_dir / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._settings = settings
        self._listeners = listen(settings.host, settings.http_port, settings.workers)
        self.http_port: int = self._listeners[0].getsockname()[1]
        self._receivers = [
            ChildProcess(settings, "receiver", str(worker), str(listener.fileno()), fds=(listener.fileno(),))
            for worker, listener in enumerate(self._listeners)
        ]
        self._writer = ChildProcess(settings, "writer")

    def run(self, stop: threading.Event) -> int:
        """Supervise until told to stop, or until a child refuses to start."""
        _recover(self._settings.spool_dir)
        children = [self._writer, *self._receivers]
        for child in children:
            child.start()
        announced = refused = False
        try:
            while not (refused or stop.is_set()):
                refused = any(self._look_after(child) for child in children)
                announced = announced or self._announce()
                stop.wait(_POLL_S)
        finally:
            self._end()
        return 1 if refused else 0

    def _look_after(self, child: ChildProcess) -> bool:
        """Restart a child that died; say whether it refused to start at all."""
        code = child.exit_code()
        if code == REFUSED_TO_START:
            return True
        if code is not None and child.may_restart():
            _log.warning("child_died", role=child.role, exit_code=code, restarts=child.restarts + 1)
            if child in self._receivers:
                _recover(self._settings.spool_dir)
            child.restart()
            self._publish()
        return False

    def _announce(self) -> bool:
        """Log the URLs once every child has published that it serves."""
        pids = {facts["pid"] for facts in read_stats(self._settings.data_dir)}
        writer = read_writer(self._settings.data_dir)
        if writer.get("pid") != self._writer.pid or not {child.pid for child in self._receivers} <= pids:
            return False
        host = self._settings.host
        _log.info("collector_ready", otlp=f"http://{host}:{self.http_port}", api=f"http://{host}:{writer['api_port']}")
        self._publish()
        return True

    def _publish(self) -> None:
        restarts = {"writer": self._writer.restarts, "receivers": sum(c.restarts for c in self._receivers)}
        write_collector(self._settings.data_dir, http_port=self.http_port, restarts=restarts)

    def _end(self) -> None:
        """Receivers finish and seal; then the writer stores what they left, as long as it may."""
        for listener in self._listeners:
            listener.close()
        _end_all(self._receivers, self._settings.drain_s + _GRACE_S)
        _recover(self._settings.spool_dir)
        _end_all([self._writer], self._settings.drain_s + _GRACE_S)
        _log.info("collector_stopped")


def _end_all(children: list[ChildProcess], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    for child in children:
        child.terminate()
    for child in children:
        if not child.wait(max(deadline - time.monotonic(), 0)):
            _log.warning("child_killed", role=child.role, after_s=limit_s)


def _recover(spool_dir: Path) -> None:
    for found in recover(spool_dir):
        _log.warning(
            "segment_recovered", segment=found.path.stem, messages=found.kept_messages, cut_bytes=found.cut_bytes
        )


@contextlib.contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Hold the data directory; the kernel lets go with the process, however that ends."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(data_dir / "collector.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            raise CollectorRunningError(
                f"the collector with pid {holder} works in {str(data_dir)!r}: stop it, or give another --data-dir"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
