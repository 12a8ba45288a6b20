"""Asks ``plain`` twice, one after the other, and says that these calls belong to its request."""

import triton_python_backend_utils as pb_utils

import axonize_triton


@axonize_triton.instrument
class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        values = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        for _ in range(2):
            response = pb_utils.InferenceRequest(
                model_name="plain",
                request_id=f"of-{request.request_id()}",
                requested_output_names=["OUT"],
                inputs=[pb_utils.Tensor("IN", values)],
                **axonize_triton.call(request),
            ).exec()
            if response.has_error():
                raise pb_utils.TritonModelException(response.error().message())
            values = pb_utils.get_output_tensor_by_name(response, "OUT").as_numpy()
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", values)])
