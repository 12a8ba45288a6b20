"""Triton's own gRPC client, as far as the tests need it: one answer, a stream, a stream that is cancelled."""

from __future__ import annotations

import contextlib
import queue

import numpy as np
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

__all__ = ["Client"]

WAIT_S = 30.0


def _inputs(value):
    tensor = grpcclient.InferInput("IN", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.array([[value]], dtype=np.float32))
    return [tensor]


class Client:
    """A connection of one thread."""

    def __init__(self, address: str):
        self._client = grpcclient.InferenceServerClient(address)

    def infer(self, model, value, request_id="", *, headers=None, parameters=None):
        """Return the value that came, or the error's message."""
        try:
            answer = self._client.infer(
                model, _inputs(value), request_id=request_id, headers=headers, parameters=parameters
            )
            return float(answer.as_numpy("OUT").ravel()[0])
        except InferenceServerException as e:
            return e.message()

    @contextlib.contextmanager
    def streaming(self, headers=None):
        """A stream, on which requests are sent with ``ask`` and answers taken with ``take``.

        What is open at its end is cancelled. A stream without any ends as clients end it: this Triton may crash when a
        stream is cancelled that just ended (its issue #8034, mended by #8078).
        """
        answers = queue.SimpleQueue()
        self._client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
        stream = _Stream(self._client, answers)
        try:
            yield stream
        finally:
            self._client.stop_stream(cancel_requests=stream.open_requests > 0)

    def close(self):
        self._client.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class _Stream:
    def __init__(self, client, answers):
        self._client, self._answers = client, answers
        self.open_requests = 0

    def ask(self, model, value, request_id="", **more):
        """Send a request; ``parameters``, ``sequence_id`` and the like as the client takes them."""
        self.open_requests += 1
        self._client.async_stream_infer(
            model, _inputs(value), request_id=request_id, enable_empty_final_response=True, **more
        )

    def take(self):
        """Return the next answer: its request's id, its value (None where it has none) or error, whether it is the last."""
        answer, error = self._answers.get(timeout=WAIT_S)
        if error is not None:
            return None, error.message(), False
        told = answer.get_response()
        value = answer.as_numpy("OUT")
        last = told.parameters["triton_final_response"].bool_param
        self.open_requests -= last
        return told.id, None if value is None else float(value.ravel()[0]), last

    def all_of(self, count=1):
        """Return the values and errors of so many requests, in the order in which they came."""
        found = []
        while count:
            _, value, last = self.take()
            found += [] if value is None else [value]
            count -= last
        return found
