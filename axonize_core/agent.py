"""The agent process: one per machine, user and export settings; reads frames from inference processes.

Started by the first of them (``--shared``: it ends with its last client), or as a node agent on a fixed socket.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from axonize_core import __version__, cpus
from axonize_core.frames import (
    PROTOCOL,
    Bye,
    FrameDecoder,
    FrameError,
    Hello,
    Records,
    Status,
    StatusRequest,
    Welcome,
    encode_frame,
)
from axonize_core.pipeline import Pipeline
from axonize_core.settings import Settings
from axonize_core.transport import peer_uid, private_directory

if TYPE_CHECKING:
    from collections.abc import Callable

    from axonize_core.frames import Frame
    from axonize_core.timeline import Timeline

__all__ = ["AgentServer", "main", "quieten_collector", "run"]

TICK_S = 0.1
LINGER_S = 1.0
FIRST_CLIENT_S = 30.0
FIRST_ENGINE_S = 5.0
COLLECT_S = 60.0
"""How often what hangs together in cycles is let go of: what is left of errors, most of the time."""
SHUTDOWN_S = 5.0
_READ_BYTES, _MOST_READS = 256 * 1024, 8
"""At a time of one client, so that one that never stops does not keep the others waiting."""
logger = logging.getLogger("axonize.agent")


class _Client:
    """One connection: an inference process, or somebody who asks for the status."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.decoder = FrameDecoder()
        self.timeline: Timeline | None = None
        self.left: str | None = "engine_lost"


class AgentServer:
    """Listens on a Unix socket and feeds a pipeline. Single-threaded; ``stop`` may be called from a signal."""

    def __init__(
        self, path: Path, pipeline: Pipeline, *, fingerprint: str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self.pipeline = pipeline
        self._fingerprint = fingerprint
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, _Client] = {}
        """By their sockets' numbers; ``_engines`` are those of them that tell records."""
        self._engines: list[_Client] = []
        self._stopping = False
        self._started_at = clock()
        self._alone_since: float | None = None
        self._seen_engine = False
        self._listener = self._listen()

    def stop(self, *_: Any) -> None:
        """End ``serve`` at its next tick."""
        self._stopping = True

    def serve(self) -> None:
        """Serve until stopped, or, for a shared agent, until the last inference process is gone.

        Who is new here or asks something is heard at once; what engines tell is read at every tick, all of it in one
        go: to be woken by each of their frames costs this process, and the engine beside it, more than to read it.
        """
        next_tick, next_collection = self._clock() + TICK_S, self._clock() + COLLECT_S
        while not self._stopping and not self._deserted():
            for key, _ in self._selector.select(max(0.0, next_tick - self._clock())):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(self._clients[key.fd])
            if self._clock() >= next_tick:
                for client in list(self._engines):
                    self._read(client)
                self.pipeline.dispatch()
                next_tick = self._clock() + TICK_S
            if self._clock() >= next_collection:
                gc.collect()
                next_collection = self._clock() + COLLECT_S

    def close(self) -> None:
        """Stop listening, so that a new process starts a new agent, and let go of the clients."""
        self._path.unlink(missing_ok=True)
        self._listener.close()
        for client in list(self._clients.values()):
            self._leave(client)
        self._selector.close()

    def _listen(self) -> socket.socket:
        # Who may bind here holds the lock of this path (or was told the path), so what lies there is stale.
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self._path))
        self._path.chmod(0o600 if self._fingerprint is not None else 0o666)
        listener.listen(128)
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        return listener

    def _deserted(self) -> bool:
        if self._fingerprint is None:
            return False
        if self._engines:
            self._alone_since = None
            return False
        now = self._clock()
        if self._alone_since is None:
            self._alone_since = now
        return now - self._alone_since > (LINGER_S if self._seen_engine else FIRST_CLIENT_S)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if peer_uid(connection) not in (os.getuid(), 0) and os.getuid() != 0:
            logger.warning("refused a connection of uid %d", peer_uid(connection))
            connection.close()
            return
        connection.setblocking(False)
        self._clients[connection.fileno()] = _Client(connection)
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, client: _Client) -> None:
        try:
            for _ in range(_MOST_READS):
                data = client.connection.recv(_READ_BYTES)
                for frame in client.decoder.feed(data):
                    self._handle(client, frame)
                if not data:
                    break
        except BlockingIOError:
            return
        except (OSError, FrameError) as e:
            logger.warning("connection lost: %s", e)
            data = b""
        if not data:
            self._leave(client)

    def _handle(self, client: _Client, frame: Frame) -> None:
        if isinstance(frame, Records) and client.timeline is not None:
            self.pipeline.feed(client.timeline, frame)
        elif isinstance(frame, Hello):
            self._welcome(client, frame)
        elif isinstance(frame, Bye):
            client.left = None
        elif isinstance(frame, StatusRequest):
            client.connection.sendall(encode_frame(Status(self.facts())))
        else:
            raise FrameError(f"{type(frame).__name__} was not expected here")

    def _welcome(self, client: _Client, frame: Hello) -> None:
        reason = ""
        if frame.protocol != PROTOCOL:
            reason = f"protocol {frame.protocol} is not {PROTOCOL}"
        elif self._fingerprint is not None and frame.fingerprint != self._fingerprint:
            reason = "other export settings"
        client.connection.sendall(encode_frame(Welcome(not reason, reason, __version__)))
        if reason:
            raise FrameError(f"refused pid {frame.pid}: {reason}")
        client.timeline = self.pipeline.connect(frame)
        self._selector.unregister(client.connection)
        self._engines.append(client)
        self._seen_engine = True

    def _leave(self, client: _Client) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(client.connection)
        self._clients.pop(client.connection.fileno(), None)
        client.connection.close()
        if client.timeline is not None:
            self._engines.remove(client)
            self.pipeline.disconnect(client.timeline, client.left)

    def facts(self) -> dict[str, Any]:
        """Return what ``axonize doctor`` shows."""
        return {"pid": os.getpid(), "socket": str(self._path), **self.pipeline.facts()}


def quieten_collector() -> None:
    """Leave Python's garbage collector to ``serve``: spans are many and acyclic.

    By its own rules it cost a fifth of the agent; with rarer passes each of them is longer (4,000 spans: 0.6 ms), and a
    thread of the engine that wakes up on this CPU waits so long.
    """
    gc.freeze()
    gc.disable()


def run(path: Path, settings: Settings, *, shared: bool, lock_fd: int | None = None) -> None:
    """Run an agent until SIGTERM, or until its last client is gone when it is shared."""
    quieten_collector()
    private_directory(path.parent) if shared else path.parent.mkdir(parents=True, exist_ok=True)
    pipeline = Pipeline(settings, first_s=FIRST_ENGINE_S)
    server = AgentServer(path, pipeline, fingerprint=settings.fingerprint if shared else None)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.stop)
    logger.info("agent %s, pid %d, listens on %s", __version__, os.getpid(), path)
    try:
        server.serve()
    finally:
        server.close()
        if lock_fd is not None:
            os.close(lock_fd)
        server.pipeline.close(SHUTDOWN_S)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``python -m axonize_core.agent``."""
    parser = argparse.ArgumentParser(prog="axonize_core.agent", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="where to listen")
    parser.add_argument("--shared", action="store_true", help="end with the last client")
    parser.add_argument("--lock-fd", type=int, default=None, help="inherited lock to let go of when listening ends")
    parser.add_argument("--cpus", default="", help="where to run, 0,1,2: its parent may be pinned by now")
    options = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = Settings.from_env()
    if options.cpus:
        cpus.use(map(int, options.cpus.split(",")))
    cpus.give_way()
    if options.shared:
        _leave_parent()
    run(options.socket, settings, shared=options.shared, lock_fd=options.lock_fd)


def _leave_parent() -> None:
    """Go on in a child, and let the engine's process see its own child end: loaded, and no longer its concern.

    No thread runs yet. Why an agent must not stay a child stands in ``starter.py``. It stays in the engine's session
    (``cpus.give_way``), but in a process group of its own, so that Ctrl-C in the engine's terminal is for the engine,
    and is not ended with that terminal either: what the engine said last is still to be sent.
    """
    if os.fork():
        os._exit(0)
    os.setpgid(0, 0)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


if __name__ == "__main__":
    main()
