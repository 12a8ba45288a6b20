"""Receivers under load and what they spend: for the benchmarks of receiving."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub

from axonize_server.listeners import listen
from axonize_server.local import free_port
from axonize_server.process import ChildProcess
from axonize_server.settings import load_settings
from axonize_server.spool import remove, sealed_segments

if TYPE_CHECKING:
    from typing_extensions import Self

PROTOBUF, JSON = "application/x-protobuf", "application/json"
READY_S = 20.0


class Receivers:
    """Receiver processes on one port over a spool of their own, which is emptied as the writer would."""

    def __init__(self, data_dir: Path, count: int = 1) -> None:
        self.grpc_port = free_port() if count == 1 else 0
        self.settings = load_settings(data_dir=data_dir, grpc_port=self.grpc_port, drain_s=5, workers=count)
        self._listeners = listen("127.0.0.1", 0, count)
        self.port = self._listeners[0].getsockname()[1]
        self._children = [
            ChildProcess(self.settings, "receiver", str(at), str(one.fileno()), fds=(one.fileno(),))
            for at, one in enumerate(self._listeners)
        ]

    def __enter__(self) -> Self:
        self._done = threading.Event()
        self._emptied = threading.Thread(target=self._empty)
        self._emptied.start()
        for child in self._children:
            child.start()
        deadline = time.monotonic() + READY_S
        while any(not self._answers() for _ in range(4 * len(self._children))):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the receivers do not answer after {READY_S:.0f} s")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._emptied.join()
        for child in self._children:
            child.terminate()
        for child, listener in zip(self._children, self._listeners, strict=True):
            child.wait(10)
            listener.close()

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [child.pid for child in self._children]

    def _answers(self) -> bool:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with contextlib.closing(client):
            try:
                client.request("GET", "/healthz")
                return client.getresponse().status == 200
            except OSError:
                return False

    def _empty(self) -> None:
        while not self._done.wait(0.1):
            for segment in sealed_segments(self.settings.spool_dir):
                remove(segment)


def post(port: int, bodies: list[bytes], content_type: str = PROTOBUF, encoding: str = "") -> None:
    """Send these over one connection, one after the other, so that sender and receiver take turns.

    Raises:
        RuntimeError: one was not taken.
    """
    headers = {"content-type": content_type, **({"content-encoding": encoding} if encoding else {})}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as client:
        for body in bodies:
            client.request("POST", "/v1/traces", body, headers)
            answer = client.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {answer.read()!r}")
            answer.read()


def post_from_many(port: int, bodies: list[bytes], connections: int) -> None:
    """Send these over so many connections at once, each its share."""
    threads = [threading.Thread(target=post, args=(port, bodies[at::connections])) for at in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def export(port: int, messages: list) -> None:
    """Send these as the official gRPC exporter does: by the stub of opentelemetry-proto."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = TraceServiceStub(channel)
        for message in messages:
            stub.Export(message, timeout=60)


def cpu_ns(*pids: int) -> int:
    """Return the CPU time of all threads of these processes, user and system; /proc counts it in nanoseconds."""
    tasks = (task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir())
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def peak_rss_mb(pid: int) -> float:
    """Return the most memory a process ever had."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024
