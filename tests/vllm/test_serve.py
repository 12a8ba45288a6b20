"""A served model from its client's side: each thing that can happen to a request, and a long mixed load of them."""

from __future__ import annotations

import random
import urllib.request

import pytest

import vllm_load
import vllm_sums

TRACE, CALLER, OTHER_CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "00f067aa0ba902b8"
LOAD = 200
AWAY = [f"away-{n}" for n in range(5)]
"""Clients that go away; a busy machine may notice it only when all of an answer was computed."""


def tokens(count, seed):
    """Return a prompt of so many tokens that no other seed shares a block with."""
    return random.Random(seed).choices(range(10, 500), k=count)


def alone(base_url):
    """Ask one at a time what must not be disturbed, and return the answers by name."""
    traced = {"headers": {"traceparent": f"00-{TRACE}-{CALLER}-01"}}
    asked = {
        "first": {"prompt": tokens(300, 1), "max_tokens": 4},
        "again": {"prompt": tokens(300, 1), "max_tokens": 4},
        "chunked": {"prompt": tokens(900, 2)},
        "one": {"prompt": tokens(20, 3), "max_tokens": 1},
        "probe": {"prompt": tokens(20, 4), "max_tokens": 60},
        "two": {"prompt": tokens(20, 5), "n": 2, "temperature": 1.0},
        "traced": {"prompt": tokens(20, 6), **traced},
        "other": {"prompt": tokens(20, 7), "headers": {"traceparent": f"00-{TRACE}-{OTHER_CALLER}-01"}},
        "unsampled": {"prompt": tokens(20, 8), "headers": {"traceparent": f"00-{TRACE}-{CALLER}-00"}},
        "chat": {"prompt": "hello world", "chat": True},
        "chat-whole": {"prompt": "hello world", "chat": True, "stream": False},
        "whole": {"prompt": tokens(20, 9), "stream": False},
        "two-whole": {"prompt": tokens(20, 10), "stream": False, "n": 2, "temperature": 1.0},
        "long": {"prompt": tokens(1100, 11)},
        **{name: {"prompt": tokens(20, 12), "max_tokens": 900, "abort_after": 3} for name in AWAY},
    }
    answers = vllm_load.run(base_url, [{"request_id": name, **question} for name, question in asked.items()])
    return dict(zip(asked, answers, strict=True))


def stopped(base_url, text):
    """Ask the probe's question again with a stop string out of its answer."""
    at = next(k for k in range(8, len(text) - 1) if text[k : k + 2].isascii() and text.index(text[k : k + 2]) == k)
    asked = {"request_id": "stopped", "prompt": tokens(20, 4), "max_tokens": 60, "stop": [text[at : at + 2]]}
    return vllm_load.run(base_url, [asked])


def many(count, seed):
    """Return questions of all kinds, prompts with common beginnings among them."""
    chance, asked = random.Random(seed), []
    for k in range(count):
        prompt = tokens(chance.choice([1, 5, 40, 100, 300]), chance.choice([0, 100 + k]))
        question = {"prompt": prompt, "max_tokens": chance.choice([1, 2, 10, 40, 100])}
        kind = chance.random()
        if kind < 0.1:
            question.update(abort_after=chance.randrange(1, 30), max_tokens=200)
        elif kind < 0.2:
            question.update(stop=chance.sample(["a", "e", "o", " ", "he"], 2), max_tokens=100)
        elif kind < 0.25:
            question.update(n=2, temperature=1.0, stream=kind < 0.22)
        elif kind < 0.35:
            question.update(stream=False)
        asked.append({"request_id": f"load-{k}", **question})
    return asked


@pytest.fixture(scope="module")
def run(crowded):
    """Everything asked of one server: answers, and what the spans tell, by the caller's id without vLLM's additions."""
    crowded.capture.forget()
    before, unsampled = metrics(crowded.base_url), vllm_sums.unsampled(crowded.surroundings)
    named = alone(crowded.base_url)
    crowd = [{"request_id": f"crowd-{k}", "prompt": tokens(200, 50 + k), "max_tokens": 400} for k in range(16)]
    answers = [
        *(answer for name, answer in named.items() if not name.startswith(("chat", "unsampled"))),
        *stopped(crowded.base_url, named["probe"].texts[0]),
        *vllm_load.run(crowded.base_url, crowd, concurrency=16),
        *vllm_load.run(crowded.base_url, many(LOAD, 1), concurrency=32),
    ]
    vllm_sums.settle(crowded.surroundings, unsampled + 1)
    stories = vllm_sums.check(crowded.capture.phases, unsampled=1)
    return Run(crowded, named, answers, stories, before, metrics(crowded.base_url))


class Run:
    """What was asked and answered, and what the spans tell of it."""

    def __init__(self, server, named, answers, stories, before, after):
        self.server, self.named, self.answers, self.stories = server, named, answers, stories
        self.counted = {name: after[name] - before[name] for name in after}

    def of(self, name):
        """Return the stories of one request by the name it was given."""
        return [s for s in self.stories if s["ai.request.id"] in (f"cmpl-{name}-0", f"chatcmpl-{name}")]

    def one(self, name):
        (story,) = self.of(name)
        return story


def spans_of(answers):
    """Return how many request spans there must be."""
    return sum(max(1, len(answer.finish_reasons)) for answer in answers if answer.status == 200)


def metrics(base_url):
    """Return what vLLM itself counted since its start."""
    with urllib.request.urlopen(f"{base_url}/metrics") as answer:
        lines = [line.split() for line in answer.read().decode().splitlines() if not line.startswith("#")]
    counted = dict.fromkeys(("num_preemptions", "generation_tokens", "prompt_tokens"), 0.0)
    for name, value in lines:
        short = name.partition("{")[0].removeprefix("vllm:").removesuffix("_total")
        if short in counted:
            counted[short] += float(value)
    return counted


def test_every_answer_has_its_span(run):
    """Finish reasons, tokens and prompts are what the API said, for each choice of each request."""
    chats = [run.named["chat"], run.named["chat-whole"]]
    vllm_sums.check_answers([s for s in run.stories if s["gen_ai.operation.name"] == "text_completion"], run.answers)
    vllm_sums.check_answers([s for s in run.stories if s["gen_ai.operation.name"] == "chat"], chats, "chatcmpl-")
    assert len(run.stories) == spans_of([*run.answers, *chats])


def test_nothing_was_lost_or_failed(run):
    """As the agent itself says, of the engine's processes too."""
    vllm_sums.check_agent(run.server.surroundings)


def test_counts_are_those_of_vllm(run):
    """Its own metrics count the same preemptions and tokens, but for preemptions of clients that left before it told."""
    unsampled = run.named["unsampled"]
    preempted = [(s["ai.preemptions"], s.finish_reason) for s in run.stories if s["ai.preemptions"]]
    stayed = sum(times for times, reason in preempted if reason == "length")
    assert 0 < stayed <= run.counted["num_preemptions"] <= sum(times for times, _ in preempted)
    assert run.counted["generation_tokens"] == sum(s.output_tokens for s in run.stories) + unsampled.completion_tokens
    assert (
        run.counted["prompt_tokens"]
        == sum(s["gen_ai.usage.input_tokens"] for s in run.stories if s.output_tokens) + unsampled.prompt_tokens
    )


def test_prefix_cache_hits_are_what_the_api_says(run):
    """The second of two equal prompts finds nine blocks of 32 tokens; every answer agrees on what it found."""
    assert (run.one("first").cached, run.one("again").cached) == (0, 288)
    for answer in run.answers:
        for story in run.of(answer.request_id):
            if answer.cached_tokens is not None and len(answer.finish_reasons) == 1:
                assert story.cached == answer.cached_tokens, (answer, story)


def test_long_prompts_are_computed_in_chunks(run):
    """900 tokens by 256 of the token budget: four steps, in each of which it is a member."""
    (prefill,) = run.one("chunked").of("prefill")
    assert [tokens for _, tokens in vllm_sums.chunks(prefill)] == [256, 256, 256, 132]
    assert (prefill["ai.steps"], prefill["gen_ai.usage.input_tokens"]) == (4, 900)


def test_preempted_requests_are_resumed(run):
    """What did not fit was taken out, computed again, and answered to its end."""
    preempted = [s for s in run.stories if s["ai.preemptions"]]
    resumed = [s for s in preempted if s.recomputed]
    assert resumed
    assert {s.finish_reason for s in preempted if s["ai.request.id"].startswith("cmpl-crowd")} == {"length"}
    assert all(s.span.duration_ns > s.of("preempted")[0].duration_ns > 0 for s in resumed)


def test_a_client_that_goes_away_aborts(run):
    """The request ends as an abort, with what was delivered and what the engine computed in vain."""
    found = [run.one(name) for name in AWAY]
    noticed = [away for away in found if away.finish_reason == "abort"]
    assert noticed
    for away in noticed:
        assert (away.span.error, away["ai.finish_reason.provenance"]) == (None, "frontend")
        assert 3 <= away.output_tokens <= away.computed < 900


def test_stop_strings_are_the_front_ends(run):
    """The engine is told to abort, the caller reads "stop": that is the reason."""
    found = run.one("stopped")
    assert (found.finish_reason, found["ai.finish_reason.provenance"]) == ("stop", "frontend")
    assert found.output_tokens < run.one("probe").output_tokens


def test_several_answers_are_requests_of_their_own(run):
    """n=2: the same id of the caller, each with its index; streamed and whole."""
    for name in ("two", "two-whole"):
        assert sorted(s["ai.request.choice.index"] for s in run.of(name)) == [0, 1]
    assert run.one("first")["ai.request.choice.index"] is None


def test_the_caller_is_the_parent(run):
    """Our request span is a child of the caller's, in its trace, whoever that is; without one it is a root."""
    found = {name: run.one(name).span for name in ("traced", "other", "first")}
    assert (found["traced"].trace_id, found["traced"].parent_id) == (TRACE, CALLER)
    assert (found["other"].trace_id, found["other"].parent_id) == (TRACE, OTHER_CALLER)
    assert (found["first"].trace_id != TRACE, found["first"].parent_id) == (True, "")


def test_what_the_caller_did_not_sample_has_no_spans(run):
    """Its steps have it as a member all the same."""
    assert run.named["unsampled"].completion_tokens == 16
    assert run.of("unsampled") == []


def test_chat_is_an_operation_of_its_own(run):
    """By the names of OTel's conventions."""
    assert [run.one(name)["gen_ai.operation.name"] for name in ("chat", "chat-whole", "whole")] == [
        "chat", "chat", "text_completion",
    ]  # fmt: skip


def test_one_token_is_enough(run):
    """It has a time to first token, and no time between tokens."""
    one = run.one("one")
    assert one["gen_ai.latency.time_to_first_token"] > 0
    assert one["gen_ai.latency.time_per_output_token"] is None
    assert (one.output_tokens, one.finish_reason) == (1, "length")


def test_what_is_refused_never_was(run):
    """A prompt beyond the model's length is an error of the caller's: no request span."""
    assert run.named["long"].status == 400
    assert run.of("long") == []


def test_latencies_lie_within_the_clients(run):
    """The client's clock began earlier and ended later, on the same machine; a stop reaches the engine last."""
    for answer in run.answers:
        if set(answer.finish_reasons.values()) == {"length"} and len(answer.finish_reasons) == 1:
            span = run.one(answer.request_id).span
            assert answer.epoch_ns(answer.sent_ns) <= span.start_ns < span.end_ns <= answer.epoch_ns(answer.ended_ns)
            first_ns = span.start_ns + round(span["gen_ai.latency.time_to_first_token"] * 1e9)
            assert first_ns <= answer.epoch_ns(answer.chunks_ns[0][0])


def test_steps_say_what_the_engine_did(run):
    """Never more tokens than the budget allows, a full cache when it was crowded, and queues that were not empty."""
    batches = run.server.capture.of("batch")
    assert max(b["ai.batch.prefill_tokens"] + b["ai.batch.decode_tokens"] for b in batches) == 256
    assert max(b["ai.batch.kv_cache.usage"] for b in batches) > 0.9
    assert max(b["ai.batch.waiting"] for b in batches) > 0
    assert max(b["ai.batch.size"] for b in batches) > 8
