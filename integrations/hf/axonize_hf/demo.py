"""The inference server of ``axonize demo``: ``python -m axonize_hf.demo --requests 40``.

Requests arrive on one thread at random moments and wait in a queue; the main thread takes them out in batches
and generates. Progress goes to stdout as one JSON object per line.
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import secrets
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import axonize_hf
from axonize_core.recorder import get_recorder
from axonize_core.settings import get_settings
from axonize_hf.demo_model import MODEL_NAME, build_pipeline

__all__ = ["Arrival", "make_load", "serve"]

_LARGEST_BATCH = 8
_MEAN_GAP_S = 0.03
_SHORT, _LONG, _INVALID = 16, 48, 0
_LONG_SHARE = 0.3
_TRACED_EVERY = 4
_FLUSH_S = 10.0
_QUESTIONS = ("Who shared this batch?", "Why was it slow?", "What ran on which slice?", "How long did it wait?")


@dataclass
class Arrival:
    """One request as a client sends it; ``arrived_ns`` is the perf_counter clock, set when it arrives."""

    request_id: str
    prompt: str
    max_new_tokens: int
    traceparent: str | None
    gap_s: float
    arrived_ns: int = 0


def make_load(requests: int, seed: int, run: str) -> list[Arrival]:
    """Return a mixed load: short and long, some with a caller's trace, one of the last asking for nothing."""
    chance = random.Random(seed)  # noqa: S311  a load, not a secret
    load = [_arrival(number, chance, run) for number in range(requests)]
    load[max(0, requests - 3)].max_new_tokens = _INVALID
    return load


def _arrival(number: int, chance: random.Random, run: str) -> Arrival:
    long = chance.random() < _LONG_SHARE
    sentences = chance.choices(_QUESTIONS, k=chance.randint(4, 8) if long else 1)
    traced = number % _TRACED_EVERY == 0
    return Arrival(
        request_id=f"{run}-{number:03d}",
        prompt=" ".join(sentences),
        max_new_tokens=_LONG if long else _SHORT,
        traceparent=f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01" if traced else None,
        gap_s=chance.expovariate(1 / _MEAN_GAP_S),
    )


def serve(pipe: Any, load: list[Arrival]) -> int:
    """Let the load arrive, serve it, and return how many requests failed."""
    inbox: queue.SimpleQueue[Arrival | None] = queue.SimpleQueue()
    threading.Thread(target=_arrive, args=(load, inbox), daemon=True).start()
    waiting: deque[Arrival] = deque()
    served = failed = 0
    while _receive(inbox, waiting):
        batch = _next_batch(waiting)
        failed += 0 if _answer(pipe, batch) else len(batch)
        served += len(batch)
        _say(served=served)
    return failed


def _arrive(load: list[Arrival], inbox: queue.SimpleQueue[Arrival | None]) -> None:
    for arrival in load:
        time.sleep(arrival.gap_s)
        arrival.arrived_ns = time.perf_counter_ns()
        inbox.put(arrival)
    inbox.put(None)


def _receive(inbox: queue.SimpleQueue[Arrival | None], waiting: deque[Arrival]) -> bool:
    """Move what has arrived into ``waiting``, blocking while that is empty; False when all is done."""
    while not waiting or not inbox.empty():
        arrival = inbox.get()
        if arrival is None:
            inbox.put(None)
            break
        waiting.append(arrival)
    return bool(waiting)


def _next_batch(waiting: deque[Arrival]) -> list[Arrival]:
    """Take the oldest request and those that can share its batch, since a batch has one token limit."""
    limit = waiting[0].max_new_tokens
    batch = [arrival for arrival in waiting if arrival.max_new_tokens == limit][:_LARGEST_BATCH]
    for arrival in batch:
        waiting.remove(arrival)
    return batch


def _answer(pipe: Any, batch: list[Arrival]) -> bool:
    contexts = [
        axonize_hf.RequestContext(arrival.request_id, arrival.traceparent, arrival.arrived_ns) for arrival in batch
    ]
    with axonize_hf.requests(contexts):
        try:
            pipe(
                [arrival.prompt for arrival in batch],
                batch_size=len(batch),
                max_new_tokens=batch[0].max_new_tokens,
                do_sample=True,
                return_full_text=False,
            )
        except ValueError as e:
            print(f"{batch[0].request_id}: {e}", file=sys.stderr)  # noqa: T201  this process's log
            return False
    return True


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201  stdout is the interface


def main() -> None:
    """Build the model, serve the load, flush, and say what became of it."""
    parser = argparse.ArgumentParser(prog="python -m axonize_hf.demo", description=__doc__)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--run", default="demo", help="prefix of the request ids")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    if get_settings().disabled:
        sys.exit(f"Axonize is switched off by {get_settings().disabled_by}")
    pipe = axonize_hf.instrument(build_pipeline(options.seed), model_name=MODEL_NAME)
    load = make_load(options.requests, options.seed, options.run)
    _say(parameters=pipe.model.num_parameters(), device=str(pipe.device), requests=len(load))
    failed = serve(pipe, load)
    recorder = get_recorder()
    flushed = recorder.close(_FLUSH_S)
    _say(served=len(load), failed=failed, flushed=flushed, dropped=recorder.dropped_total())


if __name__ == "__main__":
    main()
