"""Makes four numbers of a text, for the classifier."""

import numpy as np
import triton_python_backend_utils as pb_utils

import axonize_triton


class TritonPythonModel:
    def initialize(self, args):
        axonize_triton.attach(self, args)  # as the decorator, for a class that one cannot decorate

    def execute(self, requests):
        return [pb_utils.InferenceResponse([pb_utils.Tensor("FEATURES", self.features(r))]) for r in requests]

    def features(self, request):
        texts = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy().ravel()
        counts = [[text.count(letter) for letter in (b"a", b"e", b"o", b" ")] for text in texts]
        return np.array(counts, dtype=np.float32)
