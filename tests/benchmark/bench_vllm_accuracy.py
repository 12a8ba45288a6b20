"""What is recorded of a served model against what its client saw; runs in the environment that has vLLM.

The client is a process of its own on loopback; all clocks are this machine's. vLLM's engine core and its worker wait by
spinning, so that on two cores a client is told of a token only once their slice of time is over, milliseconds later. Client
and API server therefore run before them (SCHED_RR), as where each has a core. ``bench_vllm_accuracy.py [REQUESTS]``.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from struct import unpack

from bench_table import Row

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from bench_vllm_engine import say_rows, tiny_model

from axonize_core import attributes as names
from vllm_capture import Capture
from vllm_server import Server, Surroundings

REQUESTS = 200
CLIENT = Path(__file__).with_name("bench_vllm_client.py")
LIMIT_MS, SHARE = 1.0, 0.95
READ_S = 60.0


def run(requests: int = REQUESTS) -> list[Row]:
    """Return the rows: agreement at concurrency 1, the split at 32, and what differs from the API's word at both."""
    capture = Capture()
    with tempfile.TemporaryDirectory(prefix="axonize-bench-") as directory:
        server = Server(Surroundings(Path(directory), capture), Path(tiny_model()), ())
        try:
            server.wait_ready()
            ask(server, 1, 20, "warm")
            alone = ask(server, 1, requests, "alone")
            many = ask(server, 32, 4 * requests, "many")
            capture.wait_for(20 + 5 * requests, READ_S)
            server.stop()
        finally:
            server.close()
            capture.close()
    seen = Seen(capture)
    return [*agreement(seen, alone), *split(seen, many), words(seen, alone + many)]


def ask(server, concurrency: int, count: int, prefix: str) -> list[dict]:
    """Let a client ask, and return its answers."""
    command = [sys.executable, str(CLIENT), "ask", str(server.port), str(concurrency), str(count), prefix]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


class Seen:
    """The spans: a request by the client's id, and when each of its tokens was there."""

    def __init__(self, capture) -> None:
        self.requests = {span[names.REQUEST_ID]: span for span in capture.of("request")}
        self.count = len(capture.of("request"))
        self._steps = defaultdict(list)
        for batch in sorted(capture.of("batch"), key=lambda batch: batch.end_ns):
            members, prefills = (batch[name] for name in (names.MEMBER_REQUEST_SEQ, names.MEMBER_PREFILL_TOKENS))
            count = len(members) // 8
            for seq, prefill in zip(unpack(f"<{count}Q", members), unpack(f"<{count}I", prefills), strict=True):
                self._steps[seq].append((batch.end_ns, prefill))

    def of(self, answer: dict):
        """Return the request span of an answer."""
        return self.requests[f"cmpl-{answer['request_id']}-0"]

    def token_times_ns(self, answer: dict) -> list[int]:
        """Return when its tokens were there: the ends of its steps from the last of the prompt on, one a token.

        Steps after those were thrown away: its text had held a stop string already.
        """
        span = self.of(answer)
        steps = self._steps[span[names.REQUEST_SEQ]]
        first = max(place for place, (_, prefill_tokens) in enumerate(steps) if prefill_tokens)
        return [end_ns for end_ns, _ in steps[first:]][: span[names.OUTPUT_TOKENS]]


def agreement(seen: Seen, answers: list[dict]) -> list[Row]:
    """Return how far first tokens and times between tokens are from the client's, at concurrency 1."""
    engine, frontend, gaps, whole = [], [], [], 0
    for answer in answers:
        ttft_ms, span = _ttft_ms(answer), seen.of(answer)
        engine.append(abs(ttft_ms - span[names.LATENCY_TTFT_S] * 1e3))
        frontend.append(abs(ttft_ms - span[names.FRONTEND_TTFT_S] * 1e3))
        ours, theirs = seen.token_times_ns(answer), answer["times_ns"]
        if len(ours) == len(theirs):  # else a stop string held some of the text back
            whole += 1
            gaps += [abs(a - b) / 1e6 for a, b in zip(_gaps(ours), _gaps(theirs), strict=True)]
    assert whole > len(answers) / 2, f"the tokens of only {whole} of {len(answers)} answers can be told apart"
    client = sorted(map(_ttft_ms, answers))
    before = sorted((seen.of(answer).start_ns - answer["sent_ns"]) / 1e6 for answer in answers)
    after = sorted((answer["times_ns"][0] - seen.token_times_ns(answer)[0]) / 1e6 for answer in answers)
    return [
        _row("time to first token, front end's", frontend, f"client's: p50 {_at(client, 0.5):.2f} ms", target=True),
        _row("time to first token, engine's", engine, "what front end and HTTP add is not in it", target=False),
        Row("vLLM alone, what the client waits beside", f"{_at(before, 0.5):.2f} ms until it is an arrival", f"{_at(after, 0.5):.2f} ms", "from the engine's first token to the client; medians", "-", "(printed)", True),
        _row("time between tokens", gaps, f"{len(gaps)} gaps of {whole} answers", target=True),
    ]  # fmt: skip


def split(seen: Seen, answers: list[dict]) -> list[Row]:
    """Return where the time to the first token goes at concurrency 32, medians."""
    spans = [seen.of(answer) for answer in answers]
    client = _at(sorted(map(_ttft_ms, answers)), 0.5)
    frontend, engine, queue = (
        _at(sorted(span[name] * 1e3 for span in spans), 0.5)
        for name in (names.FRONTEND_TTFT_S, names.LATENCY_TTFT_S, names.LATENCY_QUEUE_S)
    )
    long = [answer for answer in answers if answer["output_tokens"] > 2]
    ours = _at(sorted(_per_token_ms(seen.token_times_ns(answer)) for answer in long), 0.5)
    theirs = _at(sorted(_per_token_ms(answer["times_ns"]) for answer in long), 0.5)
    return [
        Row("vLLM at 32, time to first token p50", f"engine {engine:.2f} ms, of it queue {queue:.2f}", f"{client:.2f} ms", f"client's; to the front end's own clock {frontend:.2f} ms", f"{engine / client:.0%}", "(printed)", True),
        Row("vLLM at 32, time per output token p50", f"engine {ours:.2f} ms", f"{theirs:.2f} ms", "client's", f"{ours / theirs:.0%}", "(printed)", True),
    ]  # fmt: skip


def words(seen: Seen, answers: list[dict]) -> Row:
    """Return how many answers differ from the API's word in tokens or finish reason, or have no span of their own."""
    different = 0
    for answer in answers:
        span = seen.of(answer)
        ours = (span[names.INPUT_TOKENS], span[names.OUTPUT_TOKENS], span[names.FINISH_REASONS])
        different += ours != (answer["input_tokens"], answer["output_tokens"], [answer["finish_reason"]])
    reasons = {answer["finish_reason"] for answer in answers}
    assert reasons == {"length", "stop"}, f"the answers ended by {reasons} only"
    found = f"{different} of {len(answers)} differ"
    return Row("vLLM, tokens and finish reasons", found, "0", "the API's", "-", "0", different == 0)


def _row(what: str, off_ms: list[float], peer_name: str, *, target: bool) -> Row:
    p50, p95 = (_at(sorted(off_ms), share) for share in (0.5, SHARE))
    return Row(
        name=f"vLLM alone, {what}, off by",
        ours=f"p95 {p95:.2f} ms, p50 {p50:.2f}",
        peer=f"{LIMIT_MS:.0f} ms" if target else "-",
        peer_name=peer_name,
        ratio="-",
        target=f"p95 <= {LIMIT_MS:.0f} ms" if target else "(printed)",
        met=p95 <= LIMIT_MS or not target,
    )


def _ttft_ms(answer: dict) -> float:
    return (answer["times_ns"][0] - answer["sent_ns"]) / 1e6


def _gaps(times_ns: list[int]) -> list[int]:
    return [after - before for before, after in itertools.pairwise(times_ns)]


def _per_token_ms(times_ns: list[int]) -> float:
    return (times_ns[-1] - times_ns[0]) / max(1, len(times_ns) - 1) / 1e6


def _at(ordered: list[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))]


if __name__ == "__main__":
    say_rows(run(*map(int, sys.argv[1:])))
