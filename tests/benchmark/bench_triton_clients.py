"""Clients that cost little beside the server they measure: requests are bytes made once, sent again and again."""

from __future__ import annotations

import json
import socket
import time

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

METHOD = "/inference.GRPCInferenceService/ModelInfer"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TIMEOUT_S = 30.0


class Http:
    """One connection with one request at a time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def latencies_ns(self, model: str, count: int) -> list[int]:
        """Return what each of so many requests took, one after the other."""
        asked, clock, found = http_request(model), time.perf_counter_ns, []
        for _ in range(count):
            started_ns = clock()
            self._socket.sendall(asked)
            http_answer(self._socket)
            found.append(clock() - started_ns)
        return found

    def driven_ns(self, model: str) -> list[int]:
        """Have the model drive itself; return its times from execute to execute."""
        self._socket.sendall(http_request(model, "drive"))
        said = json.loads(http_answer(self._socket))
        return json.loads(said["outputs"][0]["data"][0])

    def close(self) -> None:
        self._socket.close()


def http_request(model: str, name: str = "request-1") -> bytes:
    tensor = {"name": "IN", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    body = json.dumps({"id": name, "inputs": [tensor]})
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: bench\r\ntraceparent: {TRACEPARENT}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def http_answer(one: socket.socket) -> bytes:
    """Read one answer, and return its body."""
    data = one.recv(65536)
    while b"\r\n\r\n" not in data:
        data += received(one)
    head, _, body = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), data
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    parts, got = [body], len(body)
    while got < length:
        parts.append(received(one))
        got += len(parts[-1])
    return b"".join(parts)


def received(one: socket.socket) -> bytes:
    data = one.recv(1 << 20)
    assert data, "the server closed the connection"
    return data


class Grpc:
    """One channel with one request at a time."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._infer = self._channel.unary_unary(METHOD)  # bytes in, bytes out

    def latencies_ns(self, model: str, count: int) -> list[int]:
        """Return what each of so many requests took, one after the other."""
        tensor = service_pb2.ModelInferRequest.InferInputTensor(name="IN", datatype="FP32", shape=[1, 1])
        content = np.ones(1, dtype=np.float32).tobytes()
        request = service_pb2.ModelInferRequest(model_name=model, id="request-1", inputs=[tensor])
        request.raw_input_contents.append(content)
        asked, metadata = request.SerializeToString(), (("traceparent", TRACEPARENT),)
        infer, clock, found = self._infer, time.perf_counter_ns, []
        for _ in range(count):
            started_ns = clock()
            infer(asked, timeout=TIMEOUT_S, metadata=metadata)
            found.append(clock() - started_ns)
        return found

    def close(self) -> None:
        self._channel.close()
