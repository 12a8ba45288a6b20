"""Stands for a language model: says a prompt's words again, one response each, several requests at a time."""

import asyncio

import numpy as np
import triton_python_backend_utils as pb_utils

import axonize_triton

PREFILL_S, DECODE_S = 0.02, 0.005
FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


@axonize_triton.instrument(service_name="generate")
class TritonPythonModel:
    async def execute(self, requests):
        await asyncio.gather(*map(self.generate, requests))

    async def generate(self, request):
        sender = request.get_response_sender()
        words = pb_utils.get_input_tensor_by_name(request, "PROMPT").as_numpy()[0].decode().split()
        axonize_triton.tokens(request, input=len(words))
        await asyncio.sleep(PREFILL_S)
        for count, word in enumerate(words, start=1):
            if sender.is_cancelled():
                break
            # A response of this model is a token: without this line only responses are counted.
            axonize_triton.tokens(request, output=count)
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("TOKEN", np.array([word], dtype=np.object_))]))
            await asyncio.sleep(DECODE_S)
        sender.send(flags=FINAL)
