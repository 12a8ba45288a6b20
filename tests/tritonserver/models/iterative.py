"""Asks for its request again until it was executed as often as the value says."""

import numpy as np
import triton_python_backend_utils as pb_utils

import axonize_triton

FINAL, RESCHEDULE = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL, pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE


@axonize_triton.instrument
class TritonPythonModel:
    def initialize(self, args):
        self.seen = {}

    def execute(self, requests):
        for request in requests:
            wanted = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().ravel()[0])
            key, sender = request.correlation_id(), request.get_response_sender()
            count = self.seen[key] = self.seen.get(key, 0) + 1
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([[count]], dtype=np.float32))]))
            if count < wanted:
                request.set_release_flags(RESCHEDULE)
            else:
                sender.send(flags=FINAL)
                del self.seen[key]
