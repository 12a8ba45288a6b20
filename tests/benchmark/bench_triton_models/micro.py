"""What recording adds to one ``execute`` and one ``send``, on the request objects that a real server hands over.

A batch of MOST requests starts it, in a decoupled model any request; the numbers come back as JSON. They are of
interleaved bursts: the best of them, so that a busy machine does not count, and the median. What was recorded is thrown
away between bursts, and no thread of ours runs beside them.
"""

from __future__ import annotations

import json
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils

MOST = 32
BATCHES = (1, 8, 32)
ROUNDS, BURSTS, CALLS = 120, 10, 500
"""So many rounds of so many bursts of so many calls; with larger batches fewer calls, to see as many requests."""
NAIVE_CALLS = 25
REAL_SENDS = 200


class Held:
    """Takes the place of the shipper: leaves the records where they are."""

    def start(self):
        pass

    def flush(self, timeout_s):
        return True

    def stop(self, timeout_s):
        return True

    def forget(self):
        pass

    def ship_here(self):
        return 2**63


class Bare:
    """A model whose responses are there already."""

    def __init__(self, responses):
        self.responses = responses

    def execute(self, requests):
        return self.responses[len(requests)]


class Taken:
    """Stands for a response sender that returns at once."""

    def send(self, response=None, flags=0):
        pass

    def is_cancelled(self):
        return False


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        if detail := config.get("parameters", {}).get("detail"):
            os.environ["AXONIZE_TRITON_DETAIL"] = detail["string_value"]
        self.args = args
        self.decoupled = (config.get("model_transaction_policy") or {}).get("decoupled", False)

    def execute(self, requests):
        if self.decoupled:
            for request in requests:
                self.stream(request)
            return None
        found = measured(requests, self.args) if len(requests) == MOST else {"batch": len(requests)}
        return [answer(found) for _ in requests]

    def stream(self, request):
        own = request.get_response_sender()
        own.send(answer(measured_sends(request, own, self.args)))
        own.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def answer(found):
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([[json.dumps(found)]], dtype=np.object_))])


def attached(args):
    """Return a recorded model and a bare one, and the recorder, which keeps what it is told."""
    from axonize_core.recorder import get_recorder
    from axonize_triton import attach

    recorder = get_recorder()
    recorder.redirect(lambda _: Held())
    recorder.start()
    response = answer({})
    responses = {batch: [response] * batch for batch in BATCHES}
    on, bare = Bare(responses), Bare(responses)
    attach(on, args)
    assert "execute" in vars(on), "the model is not recorded"
    return on, bare, recorder


def measured(requests, args) -> dict:
    """Return what a call takes: bare, recorded and with naive spans, by number of requests; and what was read."""
    from naive import naive_execute

    on, bare, recorder = attached(args)
    naive = naive_execute(bare.execute)
    bursts = Bursts(recorder)
    for _ in range(ROUNDS):
        bursts.single()
        for batch in BATCHES:
            part, calls = requests[:batch], CALLS // batch
            bursts.run(f"bare {batch}", bare.execute, part, calls=calls)
            bursts.run(f"on {batch}", on.execute, part, calls=calls, records=2)
            bursts.run(f"naive {batch}", naive, part, calls=max(1, NAIVE_CALLS // batch), repeat=1)
    read = {"context": requests[0].trace().get_context(), "parameters": requests[0].parameters()}
    return {**bursts.found(), **read}


def measured_sends(request, own, args) -> dict:
    """Return what a send takes: of a stand-in and of the real sender ``own``, each bare and recorded."""
    request_class = pb_utils.InferenceRequest
    get_response_sender, taken, response = request_class.get_response_sender, Taken(), answer({})
    request_class.get_response_sender = lambda _: taken
    try:
        on, bare, recorder = attached(args)
        on.responses = bare.responses = {1: None}
        on.execute([request])
        sender = request.get_response_sender()
        assert sender is not taken, "the sender is not recorded"
        bursts = Bursts(recorder)
        bursts.emptied()
        for _ in range(ROUNDS):
            bursts.single()
            bursts.run("execute bare", bare.execute, [request])
            bursts.run("execute", on.execute, [request], records=2)
            bursts.run("bare", taken.send, response)
            bursts.run("on", sender.send, response, records=1)
            bursts.run("sender bare", lambda _: taken, request)
            bursts.run("sender", request_class.get_response_sender, request)
        taken.send = own.send
        recorded = request.get_response_sender()
        for _ in range(REAL_SENDS):
            bursts.run("real bare", own.send, response, calls=1, repeat=1)
            bursts.run("real on", recorded.send, response, calls=1, repeat=1, records=1)
        return bursts.found()
    finally:
        request_class.get_response_sender = get_response_sender


class Bursts:
    """Times of a call by name, in ns, each of one burst."""

    def __init__(self, recorder):
        self._recorder = recorder
        self._times: dict[str, list[float]] = {}

    def run(self, name, call, argument, *, calls=CALLS, repeat=BURSTS, records=0) -> None:
        """Measure bursts of a call that leaves so many records, and throw these away."""
        for _ in range(repeat):
            started_ns = time.perf_counter_ns()
            for _ in range(calls):
                call(argument)
            took_ns = time.perf_counter_ns() - started_ns
            self._times.setdefault(name, []).append(took_ns / calls)
            assert self._recorder.queued() == records * calls, self._recorder.queued()
            self.emptied()

    def single(self) -> None:
        """Measure the loop alone, and a reading of the clock in it."""
        clock = time.perf_counter_ns
        times = [clock()]
        for _ in range(CALLS):
            pass
        times.append(clock())
        for _ in range(CALLS):
            clock()
        times.append(clock())
        for name, start_ns, end_ns in zip(("loop", "clock"), times, times[1:], strict=False):
            self._times.setdefault(name, []).append((end_ns - start_ns) / CALLS)

    def emptied(self) -> None:
        """Throw away what was recorded."""
        while self._recorder.queued():
            self._recorder.take()

    def found(self) -> dict:
        """Return the best and the median of each."""
        assert not self._recorder.errors, self._recorder.errors
        assert not self._recorder.dropped_total()
        ordered = {name: sorted(times) for name, times in self._times.items()}
        return {
            "best": {name: times[0] for name, times in ordered.items()},
            "median": {name: times[len(times) // 2] for name, times in ordered.items()},
        }
