"""Sends some requests of each kind to the example's models: ``python client.py [host [http port [grpc port]]]``."""

from __future__ import annotations

import queue
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient

HOST, HTTP_PORT, GRPC_PORT = (*sys.argv[1:], *("localhost", "8000", "8001")[len(sys.argv) - 1 :])
PROMPT = "the quick brown fox jumps over the lazy dog"


def classify(client, features, request_id):
    """Ask for one row's scores; the gRPC client may be shared by threads, the HTTP client may not."""
    tensor = grpcclient.InferInput("FEATURES", [1, 4], "FP32")
    tensor.set_data_from_numpy(np.array([features], dtype=np.float32))
    return client.infer("classify", [tensor], request_id=request_id).as_numpy("SCORES")[0]


def classify_text(client, text, request_id):
    """Ask the ensemble, as a part of the caller's own trace."""
    tensor = httpclient.InferInput("TEXT", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text]], dtype=np.object_))
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    return client.infer("classify_text", [tensor], request_id=request_id, headers=headers).as_numpy("SCORES")[0]


def generate(prompt, request_id):
    """Return the words that come one by one."""
    answers = queue.SimpleQueue()
    tensor = grpcclient.InferInput("PROMPT", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([prompt], dtype=np.object_))
    words = []
    with grpcclient.InferenceServerClient(f"{HOST}:{GRPC_PORT}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("generate", [tensor], request_id=request_id, enable_empty_final_response=True)
        while True:
            result, error = answers.get(timeout=30)
            if error is not None:
                raise error
            if result.as_numpy("TOKEN") is not None:
                words.append(result.as_numpy("TOKEN")[0].decode())
            if result.get_response().parameters["triton_final_response"].bool_param:
                return " ".join(words)


def main():
    """Send them."""
    with grpcclient.InferenceServerClient(f"{HOST}:{GRPC_PORT}") as client, ThreadPoolExecutor(8) as threads:
        scores = list(threads.map(lambda at: classify(client, [at, 1, 2, 3], f"classify-{at}"), range(32)))
    print(f"classify: {len(scores)} answers")
    with httpclient.InferenceServerClient(f"{HOST}:{HTTP_PORT}") as client:
        print(f"classify_text: {classify_text(client, PROMPT, 'text-0')}")
    print(f"generate: {generate(PROMPT, 'generate-0')}")


if __name__ == "__main__":
    main()
