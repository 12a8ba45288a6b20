"""Answers at once; a request called ``drive`` has the model execute it again and again, and gets the times between.

The parameter ``way`` of a model says how it is traced: off, on (recorded by Axonize), or naive (OTel spans in ``execute``).
"""

from __future__ import annotations

import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils

EXECUTES, PAUSE_S = 2000, 0.0002


class TritonPythonModel:
    def initialize(self, args):
        way = json.loads(args["model_config"])["parameters"]["way"]["string_value"]
        self.driving = False
        if way == "on":
            from axonize_triton import attach

            attach(self, args)
            assert "execute" in vars(self), "the model is not recorded"
        elif way == "naive":
            from naive import naive_execute

            self.execute = naive_execute(self.execute)

    def execute(self, requests):
        if requests[0].request_id() == "drive" and not self.driving:
            return [answer(json.dumps(self.drive(requests))) for _ in requests]
        return [answer("") for _ in requests]

    def drive(self, requests):
        """Return the ns from the beginning of each execute to that of the next.

        Between them the interpreter's lock is free for PAUSE_S, as it is while the server waits for a request or a GPU works.
        """
        self.driving, began_ns, clock = True, [], time.perf_counter_ns
        for _ in range(EXECUTES):
            began_ns.append(clock())
            self.execute(requests)
            time.sleep(PAUSE_S)
        self.driving = False
        return np.diff(began_ns).tolist()


def answer(text):
    return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([[text]], dtype=np.object_))])
