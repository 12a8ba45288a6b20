"""Says in ``initialize`` that it is to be recorded, twice; says what it runs on, and whose it is."""

import triton_python_backend_utils as pb_utils

import axonize_triton


class TritonPythonModel:
    def initialize(self, args):
        for _ in range(2):
            axonize_triton.attach(self, args, service_name="attached-service")

    def execute(self, requests):
        tensors = [pb_utils.get_input_tensor_by_name(r, "IN").as_numpy() for r in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", values + 1)]) for values in tensors]
