"""Gives one response and then waits, for as many seconds as the value says, until the request is cancelled."""

import asyncio
import time

import numpy as np
import triton_python_backend_utils as pb_utils

import axonize_triton

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


@axonize_triton.instrument
class TritonPythonModel:
    async def execute(self, requests):
        await asyncio.gather(*(self.answer(request) for request in requests))

    async def answer(self, request):
        until = time.monotonic() + float(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().ravel()[0])
        sender = request.get_response_sender()
        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.zeros((1, 1), dtype=np.float32))]))
        while time.monotonic() < until and not sender.is_cancelled():  # noqa: ASYNC110 - Triton tells nobody
            await asyncio.sleep(0.005)
        sender.send(flags=FINAL)
