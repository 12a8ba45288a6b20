"""How frames leave the inference process: the agent's Unix socket, found or started, or an inline agent.

Everything here runs on the shipper's thread. Socket writes never block; the agent is never started from the
inference thread. The rules for the socket stand in ARCHITECTURE.md §4.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from axonize_core import __version__
from axonize_core.errors import ConfigurationError
from axonize_core.frames import PROTOCOL, FrameDecoder, FrameError, Hello, Welcome, encode_frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from axonize_core.recorder import Recorder
    from axonize_core.settings import Settings
    from axonize_core.shipper import Transport

__all__ = [
    "SocketTransport",
    "agent_socket_path",
    "connect",
    "hello",
    "make_transport",
    "peer_uid",
    "private_directory",
]

MAX_PENDING_BYTES = 1024 * 1024
MAX_SOCKET_PATH = 107
WELCOME_TIMEOUT_S = 2.0
START_TIMEOUT_S = 30.0
BACKOFF_S = (0.1, 30.0)
_LOG_LIMIT_BYTES = 1024 * 1024


def private_directory(path: Path) -> Path:
    """Make or check a directory only we can enter.

    Raises:
        ConfigurationError: it belongs to another user, or is no directory.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ConfigurationError(
            f"{path} does not belong to uid {os.getuid()}; set AXONIZE_RUNTIME_DIR to a directory of yours"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o700)
    return path


def agent_socket_path(settings: Settings) -> Path:
    """Return where the agent for these settings listens.

    Raises:
        ConfigurationError: the path does not fit into a socket address.
    """
    if settings.agent.startswith("unix://"):
        path = Path(settings.agent[len("unix://") :])
    else:
        path = settings.runtime_dir / f"agent-{PROTOCOL}-{settings.fingerprint}.sock"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise ConfigurationError(
            f"socket path {str(path)!r} is over {MAX_SOCKET_PATH} bytes; set AXONIZE_RUNTIME_DIR to a shorter one"
        )
    return path


def peer_uid(connection: socket.socket) -> int:
    """Return the uid of the process at the other end, as the kernel knows it (SO_PEERCRED)."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)


def connect(path: Path, timeout_s: float = WELCOME_TIMEOUT_S) -> socket.socket:
    """Connect to an agent of ours or of root's.

    Raises:
        OSError: nobody listens there, or somebody else does.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        if peer_uid(connection) not in (os.getuid(), 0):
            raise PermissionError(f"{path} is served by uid {peer_uid(connection)}")
    except OSError:
        connection.close()
        raise
    return connection


def hello(recorder: Recorder, settings: Settings) -> Hello:
    """Return what this process tells its agent about itself."""
    resource = {
        **settings.resource,
        "service.instance.id": recorder.instance_id,
        "host.name": socket.gethostname(),
        "process.pid": str(recorder.pid),
    }
    if settings.service_name:
        resource["service.name"] = settings.service_name
    return Hello(PROTOCOL, __version__, recorder.pid, recorder.instance_id, resource, settings.fingerprint)


class AgentStarter:
    """Starts an agent process, one at a time on this machine, with backoff between failures."""

    def __init__(self, path: Path, settings: Settings, clock: Callable[[], float]) -> None:
        self._path = path
        self._settings = settings
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0

    def ensure(self) -> None:
        """Start an agent unless one of ours is still coming up."""
        if self._process is not None and self._process.poll() is None:
            if self._clock() - self._started_at < START_TIMEOUT_S:
                return
            self._process.kill()
            self._process.wait()
        directory = private_directory(self._path.parent)
        with (directory / f"{self._path.stem}.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            self._spawn(directory, lock.fileno())

    def _spawn(self, directory: Path, lock_fd: int) -> None:
        # The child inherits the lock and holds it for its life: one agent per socket.
        log_path = directory / f"{self._path.stem}.log"
        mode = "wb" if log_path.exists() and log_path.stat().st_size > _LOG_LIMIT_BYTES else "ab"
        with log_path.open(mode) as log:
            self._process = subprocess.Popen(
                [
                    _interpreter(self._settings),
                    "-m",
                    "axonize_core.agent",
                    "--socket",
                    str(self._path),
                    "--shared",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory,
                start_new_session=True,
                pass_fds=(lock_fd,),
            )
        self._started_at = self._clock()


def agent_command(settings: Settings, path: Path) -> list[str]:
    """Return the command line of an agent that listens on ``path``."""
    return [_interpreter(settings), "-m", "axonize_core.agent", "--socket", str(path)]


def _interpreter(settings: Settings) -> str:
    """Return a Python for the agent; an embedded interpreter has an empty or foreign sys.executable."""
    if settings.agent_python:
        return settings.agent_python
    if sys.executable and "python" in Path(sys.executable).name:
        return sys.executable
    return str(Path(sys.prefix) / "bin" / "python3")


class SocketTransport:
    """The connection to an agent process; reconnects, and restarts the agent, with backoff."""

    def __init__(self, recorder: Recorder, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.generation = 0
        self._recorder = recorder
        self._settings = settings
        self._clock = clock
        self._path = agent_socket_path(settings)
        self._starter = None if settings.agent != "auto" else AgentStarter(self._path, settings, clock)
        self._connection: socket.socket | None = None
        self._pending = bytearray()
        self._pending_records = 0
        self._next_try = 0.0
        self._backoff_s = BACKOFF_S[0]

    def ready(self) -> bool:
        """Say whether a frame would be taken now; (re)connects when there is no agent."""
        if self._connection is not None and self._agent_left(self._connection):
            self._lose_agent()
        if self._connection is None and not self._reconnect():
            return False
        self._send()
        return self._connection is not None and len(self._pending) < MAX_PENDING_BYTES

    def write(self, frame: bytes, records: int) -> None:
        """Take one frame of so many records; they are counted as dropped when the agent goes before they left."""
        if self._connection is None:
            self._recorder.count_dropped(records)
            return
        self._pending += frame
        self._pending_records += records
        self._send()

    def drained(self, timeout_s: float) -> bool:
        """Wait until what was taken lies in the agent's socket buffer."""
        deadline = self._clock() + timeout_s
        while self._connection is not None and self._pending:
            remaining = deadline - self._clock()
            if remaining <= 0:
                return False
            select.select([], [self._connection], [], remaining)
            self._send()
        return not self._pending

    def close(self) -> None:
        """Let go of the agent; what lies in the socket is still read by it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._recorder.count_dropped(self._pending_records)
        self._pending_records = 0
        self._pending.clear()

    def forget(self) -> None:
        """In a forked child: close this copy of the parent's connection; what was pending is the parent's to count."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _send(self) -> None:
        if self._connection is None or not self._pending:
            return
        try:
            sent = self._connection.send(self._pending, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:
            self._lose_agent()
            return
        del self._pending[:sent]
        if not self._pending:
            self._pending_records = 0

    @staticmethod
    def _agent_left(connection: socket.socket) -> bool:
        """Say whether the agent closed its end; seen before a write, so that no record is written into the void."""
        try:
            return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _lose_agent(self) -> None:
        self._recorder.count_error("transport.agent_lost")
        self.close()

    def _reconnect(self) -> bool:
        if self._clock() < self._next_try:
            return False
        try:
            self._connection = self._greet(connect(self._path))
        except (OSError, FrameError) as e:
            self._retry_later(e)
            return False
        self.generation += 1
        self._backoff_s = BACKOFF_S[0]
        return True

    def _retry_later(self, error: Exception) -> None:
        if not isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            self._recorder.count_error(f"transport.{type(error).__name__}")
        if self._starter is not None:
            self._starter.ensure()
        self._next_try = self._clock() + self._backoff_s
        self._backoff_s = min(self._backoff_s * 1.5, BACKOFF_S[1])

    def _greet(self, connection: socket.socket) -> socket.socket:
        """Say hello and wait for the welcome.

        Raises:
            OSError: the agent does not answer, or refuses this process.
        """
        try:
            connection.sendall(encode_frame(hello(self._recorder, self._settings)))
            decoder = FrameDecoder()
            answer = None
            while answer is None:
                data = connection.recv(65_536)
                if not data:
                    raise ConnectionResetError("the agent closed the connection")
                answer = next(decoder.feed(data), None)
            if not isinstance(answer, Welcome) or not answer.accepted:
                raise ConnectionAbortedError(getattr(answer, "reason", "no welcome"))
            connection.setblocking(False)
        except (OSError, FrameError):
            connection.close()
            raise
        return connection


def make_transport(recorder: Recorder, settings: Settings) -> Transport:
    """Return the transport that ``AXONIZE_AGENT`` asks for."""
    if settings.agent == "inline":
        from axonize_core.inline import InlineTransport  # noqa: PLC0415 - loads the agent into this process, on request

        return InlineTransport(recorder, settings)
    return SocketTransport(recorder, settings)
