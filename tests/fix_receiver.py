"""A real receiver process over a spool of its own, and a client that speaks HTTP as a byte stream."""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import time

import pytest

from otlp_bodies import trace_body


class Receiver:
    """One receiver as the collector starts it, without the collector."""

    def __init__(self, data_dir, **given):
        from axonize_server.listeners import listen
        from axonize_server.process import ChildProcess
        from axonize_server.settings import load_settings

        self.settings = load_settings(**{"data_dir": data_dir, "grpc_port": 0, "drain_s": 5, **given})
        self.listener = listen("127.0.0.1", 0, 1)[0]
        self.port = self.listener.getsockname()[1]
        self.child = ChildProcess(
            self.settings, "receiver", "0", str(self.listener.fileno()), fds=(self.listener.fileno(),)
        )
        self.child.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def client(self, timeout_s=20):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)

    def post(self, body, path="/v1/traces", *, client=None, **headers):
        """Status, headers and body of the answer; a connection of its own unless one is given."""
        with contextlib.closing(client or self.client()) if client is None else contextlib.nullcontext(client) as to:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            to.request("POST", path, body, {"content-type": "application/x-protobuf", **named})
            answer = to.getresponse()
            return answer.status, dict(answer.headers), answer.read()

    def wait_ready(self):
        while self.post(trace_body(spans=0))[0] != 200:
            time.sleep(0.05)

    def raw(self, *pieces, pause_s=0.0, timeout_s=20):
        """All that comes back for bytes sent as they are, until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as to:
            for piece in pieces:
                to.sendall(piece)
                time.sleep(pause_s)
            got = b""
            while chunk := to.recv(65536):
                got += chunk
            return got

    def kill(self):
        self.child._process.kill()
        self.child.wait(5)

    def stop(self):
        """SIGTERM; the exit code."""
        self.child.terminate()
        assert self.child.wait(15), "the receiver did not end by itself"
        return self.child.exit_code()

    def close(self):
        if self.child.exit_code() is None:
            self.child._process.send_signal(signal.SIGKILL)
        self.child.wait(5)
        self.listener.close()


@pytest.fixture
def make_receiver(tmp_path):
    """Starts receivers with settings; all are ended with the test."""
    with contextlib.ExitStack() as stack:

        def make(**given):
            receiver = Receiver(given.pop("data_dir", tmp_path), **given)
            stack.callback(receiver.close)
            return receiver

        yield make


@pytest.fixture(scope="module")
def receiver(tmp_path_factory):
    """One receiver for the tests of a module that leave no trace in it."""
    receiver = Receiver(tmp_path_factory.mktemp("receiver"))
    yield receiver
    receiver.close()
