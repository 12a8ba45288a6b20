from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path

import pytest

from axonize_core.errors import ConfigurationError
from axonize_core.frames import FrameDecoder, Hello, Records, StatusRequest, Welcome, encode_frame
from axonize_core.recorder import Recorder
from axonize_core.settings import Settings
from axonize_core.transport import (
    MAX_PENDING_BYTES,
    SocketTransport,
    agent_command,
    agent_socket_path,
    make_transport,
    private_directory,
)


class Agent:
    """The other end of the socket, answering one hello as it is told to."""

    def __init__(self, path, answer):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(4)
        self.answer = answer
        self.frames = []
        self.connection = None
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        self.connection, _ = self.listener.accept()
        decoder = FrameDecoder()
        self.frames += decoder.feed(self.connection.recv(65536))
        if self.answer is None:
            self.connection.close()
        else:
            self.connection.sendall(encode_frame(self.answer))

    def close(self):
        self.thread.join(5)
        self.listener.close()
        if self.connection is not None:
            self.connection.close()


def setup(tmp_path, answer):
    path = tmp_path / "a.sock"
    agent = Agent(path, answer)
    recorder = Recorder(10, lambda r: None)
    return agent, recorder, SocketTransport(recorder, Settings(agent=f"unix://{path}", fingerprint="f"))


def test_a_welcomed_process_writes_frames(tmp_path):
    """Hello, welcome, then frames arrive whole."""
    agent, _, transport = setup(tmp_path, Welcome(True, "", "v"))
    assert transport.ready()
    assert transport.generation == 1
    transport.write(encode_frame(Records(0, 1, 2, 0, [])), 0)
    assert transport.drained(1)
    agent.thread.join(5)
    assert isinstance(agent.frames[0], Hello)
    (frame,) = FrameDecoder().feed(agent.connection.recv(65536))
    assert frame.wall_ns == 1
    transport.close()
    agent.close()


def test_an_engines_thread_looks_for_no_agent(tmp_path):
    """Only where one is connected, is still there and has room does it take what the engine hands over."""
    agent, recorder, transport = setup(tmp_path, Welcome(True, "", "v"))
    assert not transport.takes_now()
    assert not recorder.errors
    assert transport.ready()
    agent.thread.join(5)
    assert transport.takes_now()
    transport.write(b"x" * 2 * MAX_PENDING_BYTES, 10)
    assert not transport.takes_now(), "it is full"
    agent.close()
    assert not transport.takes_now(), "it left"
    assert transport.generation == 1
    transport.close()


@pytest.mark.parametrize("answer", [Welcome(False, "other export settings", "v"), StatusRequest(), None])
def test_a_refused_process_keeps_its_records(tmp_path, answer):
    """Refused, or answered with nonsense or nothing: not ready, counted, tried again later."""
    agent, recorder, transport = setup(tmp_path, answer)
    assert not transport.ready()
    assert sum(recorder.errors.values()) == 1
    assert not transport.ready(), "not before the backoff is over"
    agent.close()


def test_records_that_were_on_their_way_count_as_dropped(tmp_path):
    """When the agent goes, what it had not taken yet is counted; the transport is no longer ready."""
    agent, recorder, transport = setup(tmp_path, Welcome(True, "", "v"))
    assert transport.ready()
    agent.thread.join(5)
    for _ in range(3):
        transport.write(b"x" * MAX_PENDING_BYTES, 10)
    assert not transport.ready(), "a full transport takes no more"
    assert not transport.drained(0.01)
    agent.close()
    assert not transport.ready()
    assert recorder.dropped_total() == 30
    transport.write(b"x", 4)
    assert recorder.dropped_total() == 34
    assert recorder.errors["transport.agent_lost"] == 1


def test_an_agent_that_died_between_two_looks_is_noticed_on_writing(tmp_path):
    """A write into a dead socket is counted, never raised."""
    agent, recorder, transport = setup(tmp_path, Welcome(True, "", "v"))
    assert transport.ready()
    agent.close()
    transport.write(b"x", 2)
    assert recorder.dropped_total() == 2


def test_the_socket_path_must_fit(tmp_path):
    """A Unix socket's path has at most 107 bytes; the message says what to set."""
    with pytest.raises(ConfigurationError, match="AXONIZE_RUNTIME_DIR"):
        agent_socket_path(Settings(runtime_dir=tmp_path / ("x" * 100)))
    assert agent_socket_path(Settings(agent="unix:///a/b.sock")).as_posix() == "/a/b.sock"


def test_the_runtime_directory_is_ours_alone(tmp_path):
    """Made 0700; an open one is closed; a file or a link is refused."""
    assert private_directory(tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    assert private_directory(tmp_path / "open").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(ConfigurationError, match="does not belong"):
        private_directory(tmp_path / "link")


def test_the_agents_interpreter_is_found(monkeypatch, tmp_path):
    """The setting, else sys.executable when it is a Python, else the prefix's."""
    assert agent_command(Settings(agent_python="/py"), tmp_path)[0] == "/py"
    assert agent_command(Settings(), tmp_path)[0] == sys.executable
    monkeypatch.setattr(sys, "executable", "")
    assert agent_command(Settings(), tmp_path)[0] == str(Path(sys.prefix) / "bin" / "python3")


def test_inline_and_socket_are_chosen_by_setting(tmp_path):
    """AXONIZE_AGENT decides where frames go."""
    recorder = Recorder(10, lambda r: None)
    assert type(make_transport(recorder, Settings(runtime_dir=tmp_path))).__name__ == "SocketTransport"
    inline = make_transport(recorder, Settings(agent="inline", load_plugins=(), gpu_provider="none"))
    assert type(inline).__name__ == "InlineTransport"
    assert inline.ready()
    assert inline.drained(0)
    inline.close()
