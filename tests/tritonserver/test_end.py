"""What a server leaves behind, and what is lost with it: ended in order, killed, or with one of its models killed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from http.client import HTTPException

from triton_client import Client


def test_sigterm_leaves_nothing_behind(triton_serve):
    """All that was recorded is there, of streams under way too; no process, and no file of ours or theirs."""
    with triton_serve("plain", "stream_thread") as server:
        with Client(server.grpc_address) as client, client.streaming() as stream:
            for at in range(50):
                server.infer("plain", at, f"plain-{at}")
            for at in range(5):
                stream.ask("stream_thread", 3, f"stream-{at}")
            stream.all_of(5)
        runtime = server.surroundings.runtime
        started = time.monotonic()
        assert server.stop() == 0
        took_s = time.monotonic() - started
        server.surroundings.end_agents()
        assert len(server.capture.of("request")) == 55
        assert sum(b["ai.batch.size"] for b in server.capture.of("batch")) == 55
        assert not [r for r in server.capture.of("request") if r.error or r["ai.incomplete"]]
        assert server.left_in_shared_memory() == set()
        assert {p.suffix for p in runtime.iterdir()} <= {".log", ".lock"}
        assert took_s < 15


def test_sigkill_loses_what_was_not_shipped(triton_serve):
    """What was answered a tenth of a second before is there."""
    with triton_serve("plain", "attached") as server:
        answered = {}
        server.infer("attached", 1, "an-agent")
        server.capture.named("an-agent", 1)
        killer = threading.Timer(1.5, server.kill)
        killer.start()
        with contextlib.closing(server.connect()) as connection, contextlib.suppress(OSError, HTTPException):
            for at in range(100_000):
                server.infer("plain", at, f"plain-{at}", connection=connection)
                answered[f"plain-{at}"] = time.monotonic()
        killed = time.monotonic()
        killer.join()
        server.surroundings.end_agents()
        found = Counter(r["ai.request.id"] for r in server.capture.of("request"))
        lost = [killed - answered[name] for name in answered if name not in found]
        assert max(lost, default=0) < 0.1
        assert set(found.values()) == {1}
        assert len(answered) > 100
        assert not [r for r in server.capture.of("request") if r.error and r["ai.request.id"] in answered], lost


def test_a_killed_model_tells_what_it_was_doing(triton_serve):
    """How far it got, and that it was lost; the other models go on."""
    with (
        triton_serve("plain", "patient") as server,
        Client(server.grpc_address) as client,
        client.streaming() as stream,
    ):
        stream.ask("patient", 0, "before")
        stream.all_of()
        server.capture.named("before", 1)  # an agent is there
        stream.ask("patient", 60, "under-way")
        stream.take()
        time.sleep(0.3)
        server.kill_model("patient")
        lost = server.capture.named("under-way", 1)["under-way"]
        assert (lost.error, lost["ai.incomplete"], lost["ai.responses"]) == ("engine_lost", True, 1)
        assert server.infer("plain", 1, "after").values == [2]
        server.capture.named("after", 1)
        server.kill()
