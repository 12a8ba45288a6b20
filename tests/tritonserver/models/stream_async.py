"""Answers from a coroutine; several of them run at a time."""

import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils

import axonize_triton

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


@axonize_triton.instrument
class TritonPythonModel:
    async def execute(self, requests):
        await asyncio.gather(*(self.answer(request) for request in requests))

    async def answer(self, request):
        sender = request.get_response_sender()
        for i in range(int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().ravel()[0])):
            await asyncio.sleep(0.002)
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([[i]], dtype=np.float32))]))
        sender.send(flags=FINAL)
