"""How frames leave the inference process: the agent's Unix socket, found or started, or an inline agent.

Everything here runs on the shipper's thread; ``takes_now`` and ``write`` on an engine's too. Socket writes never block;
the agent is never looked for or started from an engine's thread. The rules for the socket stand in ARCHITECTURE.md §4.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

from axonize_core import __version__
from axonize_core.absence import AbsenceNote
from axonize_core.errors import ConfigurationError
from axonize_core.frames import PROTOCOL, FrameDecoder, FrameError, Hello, Welcome, encode_frame
from axonize_core.gpu.process import process_identity
from axonize_core.runtime_dir import MAX_SOCKET_PATH, private_directory
from axonize_core.starter import AgentStarter, agent_command, reap, wait_for_end

if TYPE_CHECKING:
    from collections.abc import Callable

    from axonize_core.recorder import Recorder
    from axonize_core.settings import Settings
    from axonize_core.shipper import Transport

__all__ = [
    "SocketTransport",
    "agent_command",
    "agent_socket_path",
    "connect",
    "hello",
    "make_transport",
    "peer_uid",
    "private_directory",
]

MAX_PENDING_BYTES = 1024 * 1024
WELCOME_TIMEOUT_S = 10.0
BACKOFF_S = (0.1, 30.0)
LAST_PROCESS_WAIT_S = 4.0
"""How long a process with which a container ends waits for its agent; less than the shipper is given to stop."""
_FIRST_FREE_FD = 3


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
    return _peer(connection)[1]


def _peer(connection: socket.socket) -> tuple[int, int]:
    """Return pid and uid of the process at the other end; the pid is 0 when it lives in another PID namespace."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return int(pid), int(uid)


def connect(path: Path, timeout_s: float = WELCOME_TIMEOUT_S) -> socket.socket:
    """Connect to an agent of ours or of root's.

    Raises:
        OSError: nobody listens there, or somebody else does.
    """
    connection = _above_stdio(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        connection.settimeout(timeout_s)
        connection.connect(str(path))
        if peer_uid(connection) not in (os.getuid(), 0):
            raise PermissionError(f"{path} is served by uid {peer_uid(connection)}")
    except OSError:
        connection.close()
        raise
    return connection


def _above_stdio(connection: socket.socket) -> socket.socket:
    """Return the socket where no standard stream's number is its own: a host that closed its stdout may still print."""
    if connection.fileno() >= _FIRST_FREE_FD:
        return connection
    with connection:
        return socket.socket(fileno=fcntl.fcntl(connection, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_FD))


def hello(recorder: Recorder, settings: Settings) -> Hello:
    """Return what this process tells its agent about itself."""
    resource = {
        "host.name": socket.gethostname(),
        **process_identity(),
        **settings.resource,
        "service.instance.id": recorder.instance_id,
        "process.pid": str(recorder.pid),
    }
    if settings.service_name:
        resource["service.name"] = settings.service_name
    return Hello(PROTOCOL, __version__, recorder.pid, recorder.instance_id, resource, settings.fingerprint)


class SocketTransport:
    """The connection to an agent process; reconnects, and restarts the agent, with backoff."""

    def __init__(self, recorder: Recorder, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self.generation = 0
        self._recorder = recorder
        self._settings = settings
        self._clock = clock
        self._starter = None if settings.agent != "auto" else AgentStarter(settings, clock)
        self._absence = AbsenceNote(settings.runtime_dir, recorder.instance_id, recorder.pid)
        self._connection: socket.socket | None = None
        self._heard = select.poll()
        self._agent_pid = 0
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
        if self._starter is not None:
            self._starter.settle()
        return self._has_room()

    def takes_now(self) -> bool:
        """Say whether a frame would be taken now, as things are: no agent is looked for. Never blocks."""
        return self._connection is not None and not self._agent_left(self._connection) and self._has_room()

    def _has_room(self) -> bool:
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
        """Let go of the agent; what lies in the socket is still read by it.

        A process with which a container may end (PID 1, or its child) waits until the agent has exported.
        """
        connected = self._connection is not None
        self._disconnect()
        if self._starter is not None:
            self._starter.forget()
            if connected and 1 in (os.getpid(), os.getppid()):
                wait_for_end(agent_socket_path(self._settings), LAST_PROCESS_WAIT_S)
                self._agent_pid = reap(self._agent_pid)
        if not connected:
            self._absence.ended(self._recorder.queued(), self._recorder.dropped_total())

    def forget(self) -> None:
        """In a forked child: close this copy of the parent's connection; what was pending is the parent's to count."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._starter is not None:
            self._starter.forget()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._recorder.count_dropped(self._pending_records)
        self._pending_records = 0
        self._pending.clear()

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

    def _agent_left(self, connection: socket.socket) -> bool:
        """Say whether the agent closed its end; seen before a write, so that no record is written into the void."""
        if not self._heard.poll(0):  # a recv would raise nearly each time
            return False
        try:
            return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _lose_agent(self) -> None:
        self._recorder.count_error("transport.agent_lost")
        self._disconnect()

    def _reconnect(self) -> bool:
        if self._clock() < self._next_try:
            return False
        self._agent_pid = reap(self._agent_pid)
        try:
            connection = connect(agent_socket_path(self._settings))
            self._connection = self._greet(connection)
        except (OSError, FrameError, ConfigurationError) as e:
            self._retry_later(e)
            return False
        self._heard = select.poll()
        self._heard.register(connection, select.POLLIN)
        self._agent_pid = _peer(connection)[0]
        self._absence.found()
        self.generation += 1
        self._backoff_s = BACKOFF_S[0]
        return True

    def _retry_later(self, error: Exception) -> None:
        """Count why there is no agent, start one, and say so where doctor looks when that lasts."""
        nobody = isinstance(error, (FileNotFoundError, ConnectionRefusedError))
        self._next_try = self._clock() + self._backoff_s
        self._backoff_s = min(self._backoff_s * 1.5, BACKOFF_S[1])
        if not nobody:
            self._recorder.count_error(f"transport.{type(error).__name__}")
        why = "nobody listens there" if nobody else str(error)
        if nobody and self._starter is not None:
            why = f"its agent does not come up, see the log in {self._settings.runtime_dir}"
        self._absence.missing(self._start_agent() or why, self._recorder.queued(), self._recorder.dropped_total())

    def _start_agent(self) -> str:
        """Start an agent where that is ours to do; return why it failed, empty when nothing is known to have."""
        if self._starter is None:
            return ""
        known = self._starter.failure
        try:
            self._starter.ensure(agent_socket_path(self._settings))
        except (OSError, ConfigurationError) as e:
            self._starter.failure = f"no agent can be started: {e}"
        if self._starter.failure not in ("", known):
            self._recorder.count_error("transport.start")
        return self._starter.failure

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
