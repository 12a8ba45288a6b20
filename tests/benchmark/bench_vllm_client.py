"""A streaming client of ``vllm serve`` in a process of its own, light enough not to be what is measured.

``bench_vllm_client.py load PORT CONCURRENCY WARM_S LOAD_S`` asks again and again, each connection one question at a time,
and prints one JSON object: tokens per second, and quantiles of the times between reads and to the first token, in ms.
``bench_vllm_client.py ask PORT CONCURRENCY COUNT PREFIX`` asks different questions, and prints of each what came and when.
It runs before what spins (SCHED_RR), where that is allowed: a client has a machine of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sys
import time
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from vllm_server import running_first

PROMPT_TOKENS = (8, 96)
ANSWER_TOKENS = 64
END = b"0\r\n\r\n"


class Asking(asyncio.Protocol):
    """One kept-alive connection: ``ask`` sends a question and waits until its answer is over."""

    def connection_made(self, transport):
        self._transport = transport
        self._over = None

    def connection_lost(self, exc):
        if self._over is not None and not self._over.done():
            self._over.set_exception(ConnectionError("the server closed the connection"))

    async def ask(self, request_id: str, body: dict) -> tuple[int, list[tuple[int, bytes]]]:
        """Return when it was sent, and what came: perf_counter ns and the bytes of one read."""
        data = json.dumps({"model": "tiny", "stream": True, "temperature": 0.0, **body}).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            f"X-Request-Id: {request_id}\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self._came: list[tuple[int, bytes]] = []
        self._over = asyncio.get_running_loop().create_future()
        sent_ns = time.perf_counter_ns()
        self._transport.write(head.encode() + data)
        await self._over
        if not self._came[0][1].startswith(b"HTTP/1.1 200"):
            raise ConnectionError(b"".join(data for _, data in self._came).decode(errors="replace"))
        return sent_ns, self._came

    def data_received(self, data):
        self._came.append((time.perf_counter_ns(), data))
        if data.endswith(END) and not self._over.done():
            self._over.set_result(None)

    def close(self):
        self._transport.close()


async def connect(port: int) -> Asking:
    """Return a connection to the server on loopback."""
    _, protocol = await asyncio.get_running_loop().create_connection(Asking, "127.0.0.1", port)
    return protocol


def token_times(came: list[tuple[int, bytes]]) -> list[int]:
    """Return when each piece of the answer came; pieces that came in one read came together."""
    return [t_ns for t_ns, data in came for _ in range(data.count(b'"choices":[{'))]


async def load(port: int, concurrency: int, warm_s: float, load_s: float) -> dict:
    """Ask for so long, and return what came after the warm-up."""
    begin_ns = time.perf_counter_ns() + round(warm_s * 1e9)
    end_ns = begin_ns + round(load_s * 1e9)
    tokens, gaps, firsts = [0], [], []

    async def one(place: int) -> None:
        chance, connection, number = random.Random(place), await connect(port), 0
        while time.perf_counter_ns() < end_ns:
            number += 1
            prompt = [chance.randrange(5, 300) for _ in range(chance.randint(*PROMPT_TOKENS))]
            body = {"prompt": prompt, "max_tokens": ANSWER_TOKENS, "ignore_eos": True}
            sent_ns, came = await connection.ask(f"load-{place}-{number}", body)
            times = token_times(came)
            tokens[0] += sum(begin_ns <= t_ns < end_ns for t_ns in times)
            if sent_ns >= begin_ns and times[-1] < end_ns:
                firsts.append(times[0] - sent_ns)
                gaps.extend(after - before for before, after in itertools.pairwise(times) if after > before)
        connection.close()

    await asyncio.gather(*(one(place) for place in range(concurrency)))
    return {
        "tokens_per_s": tokens[0] / load_s,
        "requests": len(firsts),
        **{f"itl_{name}_ms": value for name, value in _quantiles(gaps).items()},
        **{f"ttft_{name}_ms": value for name, value in _quantiles(firsts).items()},
    }


async def ask_all(port: int, concurrency: int, count: int, prefix: str) -> list[dict]:
    """Ask different questions, and return of each what the API said of it and when each token came, epoch ns.

    Lengths from one token on; every third may end before its length, by a stop string or the end of the text.
    """
    numbers, answers = iter(range(count)), []

    async def one() -> None:
        connection = await connect(port)
        for number in numbers:
            chance = random.Random(f"{prefix}{number}")
            body = {
                "prompt": [chance.randrange(5, 300) for _ in range(chance.randint(*PROMPT_TOKENS))],
                "max_tokens": chance.choice((1, 2, 16, ANSWER_TOKENS, ANSWER_TOKENS)),
                "stream_options": {"include_usage": True},
                **({"stop": ["e", "o"]} if number % 3 == 0 else {"ignore_eos": True}),
            }
            sent_ns, came = await connection.ask(f"{prefix}{number}", body)
            answers.append(_answer(f"{prefix}{number}", sent_ns, came))
        connection.close()

    await asyncio.gather(*(one() for _ in range(concurrency)))
    return answers


def _answer(request_id: str, sent_ns: int, came: list[tuple[int, bytes]]) -> dict:
    lines = b"".join(data for _, data in came).decode().splitlines()
    pieces = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    reasons = [choice["finish_reason"] for piece in pieces for choice in piece["choices"] if choice["finish_reason"]]
    usage = pieces[-1]["usage"]
    epoch_ns = time.time_ns() - time.perf_counter_ns()
    return {
        "request_id": request_id,
        "sent_ns": sent_ns + epoch_ns,
        "times_ns": [t_ns + epoch_ns for t_ns in token_times(came)],
        "finish_reason": reasons[-1],
        "input_tokens": usage["prompt_tokens"],
        "output_tokens": usage["completion_tokens"],
    }


def _quantiles(values_ns: list[int]) -> dict[str, float]:
    ordered = sorted(values_ns)
    return {name: ordered[int(share * (len(ordered) - 1))] / 1e6 for name, share in (("p50", 0.5), ("p99", 0.99))}


def main(what: str, port: str, concurrency: str, *more: str) -> None:
    """Do what the command line says."""
    if what == "ask":
        asked = ask_all(int(port), int(concurrency), int(more[0]), more[1])
    else:
        asked = load(int(port), int(concurrency), float(more[0]), float(more[1]))
    with running_first():
        answers = asyncio.run(asked)
    print(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
