"""Fails in every way there is: the value says in which."""

import triton_python_backend_utils as pb_utils

import axonize_triton

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


@axonize_triton.instrument(service_name="fragile-service")
class TritonPythonModel:
    def initialize(self, args):
        self.kept = pb_utils.TritonError("kept")
        self.more = []

    def execute(self, requests):
        return [self.answer(r, int(pb_utils.get_input_tensor_by_name(r, "IN").as_numpy().ravel()[0])) for r in requests]

    def answer(self, request, value):
        values = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        if value == -1:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("made"))
        if value == -2:
            raise ValueError(value)
        if value == -3:
            raise pb_utils.TritonModelException("raised")
        if value == -4:
            return pb_utils.InferenceResponse(error=self.kept)
        if value == -5:
            self.more.append(pb_utils.TritonError("made, and never used"))
        if value == -6:
            request.get_response_sender().send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", values)]), FINAL)
            return None
        if value == -7:
            called = pb_utils.InferenceRequest(
                model_name="plain",
                requested_output_names=["OUT"],
                inputs=[pb_utils.Tensor("IN", values * 0 - 1)],
                **axonize_triton.call(request),
            )
            return pb_utils.InferenceResponse(error=called.exec().error())
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", values)])
