"""Answers from threads, long after ``execute`` returned; the last response is the final one."""

import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

import axonize_triton

FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


@axonize_triton.instrument
class TritonPythonModel:
    def initialize(self, args):
        self.threads = []

    def execute(self, requests):
        for request in requests:
            count = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().ravel()[0])
            thread = threading.Thread(target=self.answer, args=(request.get_response_sender(), count))
            thread.start()
            self.threads = [t for t in self.threads if t.is_alive()] + [thread]

    def answer(self, sender, count):
        for i in range(count):
            time.sleep(0.002)
            out = pb_utils.Tensor("OUT", np.array([[i]], dtype=np.float32))
            sender.send(pb_utils.InferenceResponse([out]), FINAL if i == count - 1 else 0)

    def finalize(self):
        for thread in self.threads:
            thread.join()
