"""What the model's thread does for us in each execute and each send; runs in the environment that has tritonserver.

The model measures itself (``bench_triton_models/micro.py``): its requests are those that the server gave it, with an id and
a forwarded ``traceparent``. Added is the best burst with recording less the best without; the medians' difference beside.
"""

from __future__ import annotations

import json
import queue
import tempfile
from pathlib import Path

import numpy as np
import tritonclient.grpc
import tritonclient.http
from bench_table import Row
from bench_triton_server import DECOUPLED, add_model, running_server, say_rows

MOST = 32
BATCHING = f"dynamic_batching {{ preferred_batch_size: [{MOST}] max_queue_delay_microseconds: 5000000 }}\n"
TRACEPARENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
TRACED = ("mode=opentelemetry", "level=TIMESTAMPS", "rate=1", "opentelemetry,url=http://127.0.0.1:9/v1/traces")
TIMEOUT_S = 240.0
EXECUTE_NS, FURTHER_NS, FURTHER_ID_NS, SEND_NS = 1200, 900, 250, 150


def run() -> list[Row]:
    """Return the rows of execute in three modes, those of send, and naive spans beside."""
    with tempfile.TemporaryDirectory(prefix="axonize-bench-") as name:
        home = Path(name)
        env = {"AXONIZE_RUNTIME_DIR": f"{name}/run", "AXONIZE_STATE_DIR": f"{name}/state"}
        add_model(home / "models", "micro", "micro", most=MOST, more=BATCHING)
        add_model(home / "models", "ids", "micro", most=MOST, more=BATCHING, detail="ids")
        add_model(home / "models", "sends", "micro", more=DECOUPLED)
        with running_server(home / "plain", home / "models", env) as server:
            default, ids, sends = batch(server, "micro"), batch(server, "ids"), stream(server, "sends")
        assert default["context"] is None, default
        assert json.loads(default["parameters"]) == TRACEPARENT, default
        add_model(home / "traced_models", "micro", "micro", most=MOST, more=BATCHING)
        flags = [f"--trace-config={flag}" for flag in TRACED]
        with running_server(home / "traced", home / "traced_models", env, *flags) as server:
            traced = batch(server, "micro")
        assert traced["context"], traced
    return [
        execute_row("", default, EXECUTE_NS),
        *further_rows("", default, FURTHER_NS),
        execute_row(", ids only", ids),
        *further_rows(", ids only", ids, FURTHER_ID_NS),
        execute_row(", Triton traces too", traced),
        *further_rows(", Triton traces too", traced),
        *send_rows(sends),
    ]


def batch(server, model: str) -> dict:
    """Send MOST requests at once, which are one execute; return what the model found."""
    client = tritonclient.http.InferenceServerClient(
        f"127.0.0.1:{server.port}", concurrency=MOST, network_timeout=TIMEOUT_S, connection_timeout=TIMEOUT_S
    )
    asked = one_input(tritonclient.http)
    calls = [
        client.async_infer(model, [asked], request_id=f"request-{i}", headers={**TRACEPARENT}) for i in range(MOST)
    ]
    found = [json.loads(call.get_result().as_numpy("OUT").ravel()[0]) for call in calls]
    client.close()
    assert "best" in found[0], f"the requests were not one batch: {found}"
    return found[0]


def stream(server, model: str) -> dict:
    """Send one request, and take the responses that the model measures with; return what it found."""
    came: queue.Queue = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
        client.start_stream(lambda result, error: came.put((result, error)), headers=TRACEPARENT)
        client.async_stream_infer(model, [one_input(tritonclient.grpc)], request_id="request-0")
        found: dict = {}
        while "best" not in found:
            result, error = came.get(timeout=TIMEOUT_S)
            assert error is None, error
            found = json.loads(result.as_numpy("OUT").ravel()[0])
        client.stop_stream()
    return found


def one_input(client):
    asked = client.InferInput("IN", [1, 1], "FP32")
    asked.set_data_from_numpy(np.ones((1, 1), dtype=np.float32))
    return asked


def execute_row(mode: str, found: dict, limit_ns: int | None = None) -> Row:
    """Return what an execute of one request takes more, with its four events; naive spans are the peer."""
    best, median = (added(found[which], "on 1", "bare 1") for which in ("best", "median"))
    naive = added(found["best"], "naive 1", "bare 1")
    clock_ns = added(found["best"], "clock", "loop")
    return Row(
        name=f"Triton, execute of 1 request{mode}: added",
        ours=f"{best:.0f} ns",
        peer=f"{naive / 1e3:.1f} us",
        peer_name=f"OTel spans in execute; ours per event {best / 4:.0f} ns, median {median:.0f}, clock {clock_ns:.0f}",
        ratio=f"1/{naive / best:.0f}",
        target=f"<= {limit_ns / 1e3:.1f} us" if limit_ns else "(printed)",
        met=limit_ns is None or best <= limit_ns,
    )


def further_rows(mode: str, found: dict, limit_ns: int | None = None) -> list[Row]:
    """Return what each request more in a batch takes more."""
    rows = []
    for size in (8, MOST):
        best, median, naive = (
            (added(found[which], f"{way} {size}", f"bare {size}") - added(found[which], f"{way} 1", "bare 1"))
            / (size - 1)
            for which, way in (("best", "on"), ("median", "on"), ("best", "naive"))
        )
        row = Row(
            name=f"Triton, each further request of a batch of {size}{mode}: added",
            ours=f"{best:.0f} ns",
            peer=f"{naive / 1e3:.1f} us",
            peer_name=f"OTel spans in execute; ours median {median:.0f} ns",
            ratio=f"1/{naive / best:.0f}",
            target=f"<= {limit_ns / 1e3:.2f} us" if limit_ns else "(printed)",
            met=limit_ns is None or best <= limit_ns,
        )
        rows.append(row)
    return rows


def send_rows(found: dict) -> list[Row]:
    """Return what a send takes more, the real one beside; and what else a request of a decoupled model takes more."""
    send, median = (added(found[which], "on", "bare") for which in ("best", "median"))
    execute, sender = (added(found["best"], name, f"{name} bare") for name in ("execute", "sender"))
    real_us, on_us = (found["median"][f"real {which}"] / 1e3 for which in ("bare", "on"))
    clock_ns = added(found["best"], "clock", "loop")
    beside = f"a real send, median, recorded {on_us:.0f}; ours median {median:.0f} ns, clock {clock_ns:.0f}"
    return [
        Row("Triton, each send of a response: added", f"{send:.0f} ns", f"{real_us:.0f} us", beside, f"1/{real_us * 1e3 / send:.0f}", f"<= {SEND_NS / 1e3:.2f} us", send <= SEND_NS),
        Row("Triton, execute of 1 request, decoupled: added", f"{execute:.0f} ns", "-", "and no response yet", "-", f"<= {EXECUTE_NS / 1e3:.1f} us", execute <= EXECUTE_NS),
        Row("Triton, get_response_sender: added", f"{sender:.0f} ns", "-", "once per request of a decoupled model", "-", "(printed)", met=True),
    ]  # fmt: skip


def added(found: dict, what: str, bare: str) -> float:
    return found[what] - found[bare]


if __name__ == "__main__":
    say_rows(run())
