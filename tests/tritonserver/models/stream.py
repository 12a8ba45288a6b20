"""Answers with as many responses as the value says, in ``execute``; 2 ms apart, the third an error where it is negative."""

import time

import numpy as np
import triton_python_backend_utils as pb_utils

import axonize_triton

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


@axonize_triton.instrument
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            count = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().ravel()[0])
            axonize_triton.tokens(request, input=7)
            for i in range(abs(count)):
                time.sleep(0.002)
                if count < 0 and i == 2:
                    sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("in the middle")))
                    continue
                out = pb_utils.Tensor("OUT", np.array([[i]], dtype=np.float32))
                axonize_triton.tokens(request, output=2 * (i + 1))
                sender.send(pb_utils.InferenceResponse([out]))
            sender.send(flags=FINAL)
