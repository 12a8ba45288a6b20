"""Answers twice the value; a value of -1 is answered with an error."""

import triton_python_backend_utils as pb_utils

import axonize_triton


@axonize_triton.instrument
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(pb_utils.get_input_tensor_by_name(r, "IN").as_numpy()) for r in requests]

    def answer(self, values):
        if values.ravel()[0] == -1:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("asked to fail"))
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", values * 2)])
