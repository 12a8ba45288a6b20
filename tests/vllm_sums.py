"""The sums that hold for every request and every step of a run of vLLM, over all of its spans."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from struct import unpack
from typing import TYPE_CHECKING, Any, NamedTuple

from axonize_core.doctor import agent_status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from vllm_capture import CapturedSpan
    from vllm_load import Answer
    from vllm_server import Surroundings

__all__ = ["Story", "agent_facts", "check", "check_agent", "check_answers", "chunks", "settle", "unsampled"]

AGENT_STARTS_S = 30.0
PHASES = ("queue", "prefill", "decode", "preempted")
CLEAN = ("records_dropped", "records_unknown", "records_orphaned", "engines_lost", "encoder_failures",
         "answers_dropped", "requests_without_engine", "requests_without_front_end", "requests_late")  # fmt: skip
"""What an agent counts that must not happen in a run in which nothing went wrong."""


class Part(NamedTuple):
    """What one step did for one request; ``context`` are the tokens it had before."""

    batch: CapturedSpan
    prefill: int
    decode: int
    context: int


@dataclass
class Story:
    """A request as the spans tell it: its own span, its phases in order, and the steps it was in."""

    span: CapturedSpan
    phases: list[CapturedSpan] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        """Return an attribute of the request span."""
        return self.span[name]

    def __repr__(self) -> str:
        """Say what a failed sum is about, and no more."""
        start_ns = self.span.start_ns
        phases = [(s.phase, s.start_ns - start_ns, s.end_ns - start_ns, s["ai.steps"]) for s in self.phases]
        parts = [(p.batch["ai.batch.seq"], p.prefill, p.decode, p.context) for p in self.parts]
        return f"Story({self.span.attributes}, {self.span.error}, phases={phases}, parts={parts})"

    def of(self, phase: str) -> list[CapturedSpan]:
        return [s for s in self.phases if s.phase == phase]

    @property
    def output_tokens(self) -> int:
        return self["gen_ai.usage.output_tokens"] or 0

    @property
    def computed(self) -> int:
        """Tokens of its answer that the engine made, given to the caller or not."""
        return self.output_tokens + (self["ai.discarded_tokens"] or 0)

    @property
    def cached(self) -> int:
        return self["gen_ai.usage.cache_read.input_tokens"] or 0

    @property
    def recomputed(self) -> int:
        return sum(s["ai.recomputed_tokens"] or 0 for s in self.of("prefill"))

    @property
    def finish_reason(self) -> str | None:
        reasons = self["gen_ai.response.finish_reasons"]
        return reasons[0] if reasons else None


def check(
    phases: Mapping[str, Iterable[CapturedSpan]],
    *,
    unsampled: int = 0,
    ahead: Mapping[str, int] | None = None,
    lost: bool = False,
) -> list[Story]:
    """Hold every sum, and return the requests in the order in which they came.

    Args:
        phases: all spans of a run, by phase.
        unsampled: how many requests have steps and, as their callers did not sample them, no spans.
        ahead: by request id, how many steps it is in that were planned before it ended and over only afterwards; None:
            one at most, where somebody ended it from outside.
        lost: whether an engine died; what it left is incomplete, and its last steps may be missing.
    """
    stories = _stories(phases)
    strangers = _check_steps(phases["batch"], stories, lost=lost)
    assert len(strangers) == unsampled, f"{len(strangers)} members nobody knows: {sorted(strangers)[:5]}"
    for story in stories.values():
        if not story.span["ai.incomplete"]:
            _check_time(story)
            late = _late(story) if ahead is None else ahead.get(story["ai.request.id"], 0)
            _check_tokens(story, story.parts[: len(story.parts) - late])
        assert lost or not story.span["ai.incomplete"], story.span
    return sorted(stories.values(), key=lambda story: story.span.start_ns)


def check_answers(stories: Iterable[Story], answers: Iterable[Answer], prefix: str = "cmpl-") -> None:
    """Hold what the API said against the spans: one span for each choice of each answer, no other, the same facts."""
    told: defaultdict[str, list[Story]] = defaultdict(list)
    for story in stories:
        told[story["ai.request.id"]].append(story)
    for answer in answers:
        found = told.pop(f"{prefix}{answer.request_id}{'-0' if prefix == 'cmpl-' else ''}", [])
        if answer.status == 400:
            assert not found, answer
            continue
        if answer.aborted and not answer.chunks_ns and not found:
            continue  # it went away before it was understood
        choices = {story["ai.request.choice.index"] or 0: story for story in found}
        assert len(found) == len(choices) == max(1, len(answer.finish_reasons)), (answer, found)
        if answer.aborted:
            (story,) = found
            # The last piece may be on its way when the client goes: then the engine was done with it.
            assert story.finish_reason in ("abort", "length"), story.span
            assert story.computed >= story.output_tokens >= len(answer.chunks_ns.get(0, ())), (answer, story.span)
            continue
        assert answer.error is None, answer
        assert {k: story.finish_reason for k, story in choices.items()} == answer.finish_reasons, answer
        assert sum(story.output_tokens for story in found) == answer.completion_tokens, (answer, found)
        assert {story["gen_ai.usage.input_tokens"] for story in found} == {answer.prompt_tokens}, answer
        assert {story["ai.finish_reason.provenance"] for story in found} == {"frontend"}, found
    assert not told, f"requests that nobody asked for: {list(told)[:5]}"


def agent_facts(surroundings: Surroundings) -> dict[str, Any]:
    """Return what the one agent of these surroundings says of itself; while its engine lives.

    Raises:
        AssertionError: it does not listen, also not after a while: it may start later than an engine that spins.
    """
    deadline = time.monotonic() + AGENT_STARTS_S
    while not (found := list(surroundings.runtime.glob("agent-*.sock"))):
        assert time.monotonic() < deadline, f"no agent in {surroundings.runtime}"
        time.sleep(0.1)
    (path,) = found
    return agent_status(path)


def settle(surroundings: Surroundings, unsampled: int = 0, timeout_s: float = 60.0) -> None:
    """Wait until nothing lives in the engine, and all that the agent made of it has arrived.

    Args:
        surroundings: of the engine, which lives.
        unsampled: how many requests have no spans, of all that this agent ever heard of.
        timeout_s: at most.

    Raises:
        AssertionError: they are not there in time.
    """
    capture, deadline = surroundings.capture, time.monotonic() + timeout_s
    before: dict[str, int] = {}
    while True:
        facts, here = agent_facts(surroundings), dict(capture.total)
        counts = facts["counts"]
        expected = counts.get("requests", 0) - unsampled
        arrived = here.get("batch") == counts.get("batches") and here.get("request") == expected
        if arrived and not facts["requests_live"] and here == before:
            return
        assert time.monotonic() < deadline, f"{here} instead of {expected} requests; {facts}"
        before = here
        # Longer than an ended request waits for its front end.
        time.sleep(1.2 if arrived else 0.1)


def unsampled(surroundings: Surroundings) -> int:
    """Return how many requests have no spans so far; to be asked while nothing is under way."""
    counts = agent_facts(surroundings)["counts"] if list(surroundings.runtime.glob("agent-*.sock")) else {}
    return counts.get("requests", 0) - surroundings.capture.total["request"]


def check_agent(surroundings: Surroundings) -> dict[str, Any]:
    """Hold that nothing was lost, unknown, or failed so far in agent and engine; return the agent's counters."""
    facts = agent_facts(surroundings)
    counts = facts["counts"]
    assert {name: counts.get(name, 0) for name in CLEAN} == dict.fromkeys(CLEAN, 0)
    assert (facts["process_errors"], facts["failures"], facts["disabled"]) == ({}, {}, {})
    return counts


def _stories(phases: Mapping[str, Iterable[CapturedSpan]]) -> dict[tuple[str, int], Story]:
    """Return the requests by process and number, each with its phases; no phase belongs to nobody."""
    requests = list(phases["request"])
    stories = {_key(span): Story(span) for span in requests}
    assert len(stories) == len(requests), "a request was told twice"
    by_id = {(span.trace_id, span.span_id): stories[_key(span)] for span in requests}
    assert len(by_id) == len(requests)
    for phase in PHASES:
        for span in phases[phase]:
            story = by_id[span.trace_id, span.parent_id]
            assert _key(span) == _key(story.span), (span, story.span)
            story.phases.append(span)
    for story in stories.values():
        # One that took no time comes before the one that began when it ended.
        story.phases.sort(key=lambda span: (span.start_ns, span.end_ns))
    return stories


def _key(span: CapturedSpan) -> tuple[str, int]:
    return span.resource["service.instance.id"], span["ai.request.seq"]


def _check_steps(
    batches: Iterable[CapturedSpan], stories: dict[tuple[str, int], Story], *, lost: bool
) -> set[tuple[str, int]]:
    """Hold the sums of each step, give each request its parts, and return the members that no span tells of."""
    seen: set[tuple[str, int]] = set()
    strangers: set[tuple[str, int]] = set()
    links: Counter[tuple[str, str]] = Counter()
    for batch in sorted(batches, key=lambda span: span["ai.batch.seq"]):
        instance = batch.resource["service.instance.id"]
        number = (instance, batch["ai.batch.seq"])
        assert number not in seen, f"step {number} was told twice"
        seen.add(number)
        assert lost or not batch["ai.incomplete"], batch
        _check_step(batch)
        links.update(batch.links)
        for seq, *part in zip(*_members(batch), strict=True):
            story = stories.get((instance, seq))
            if story is None:
                strangers.add((instance, seq))
            else:
                story.parts.append(Part(batch, *part))
    known = {(s.span.trace_id, s.span.span_id) for s in stories.values() if s.parts}
    assert {link: count for link, count in links.items() if link in known} == dict.fromkeys(known, 1)
    return strangers


def _check_step(batch: CapturedSpan) -> None:
    """Hold that the members' tokens are the step's, and its three parts its time."""
    seqs, prefills, decodes, _ = _members(batch)
    assert len(set(seqs)) == len(seqs) == batch["ai.batch.size"] > 0, batch
    assert sum(prefills) == batch["ai.batch.prefill_tokens"], batch
    assert sum(decodes) == batch["ai.batch.decode_tokens"], batch
    assert all(prefill + decode > 0 for prefill, decode in zip(prefills, decodes, strict=True)), batch
    parts_ms = (batch["ai.batch.schedule_ms"], batch["ai.batch.execute_ms"], batch["ai.batch.update_ms"])
    assert sum(round(part_ms * 1e6) for part_ms in parts_ms) == batch.duration_ns, batch
    assert 0 <= batch["ai.batch.kv_cache.usage"] <= 1, batch
    assert batch["ai.batch.waiting"] >= 0, batch


def _members(batch: CapturedSpan) -> tuple[tuple[int, ...], ...]:
    size = batch["ai.batch.size"]
    names = ("prefill_tokens", "decode_tokens", "context_tokens")
    return (
        unpack(f"<{size}Q", batch["ai.batch.member.request_seq"]),
        *(unpack(f"<{size}I", batch[f"ai.batch.member.{name}"]) for name in names),
    )


def _check_time(story: Story) -> None:
    """Hold that its phases follow one another without a gap, from when it came to when it ended."""
    span, phases = story.span, story.phases
    assert phases[0].phase == "queue", story
    assert [s.phase for s in phases].count("queue") == 1, story
    assert (phases[0].start_ns, phases[-1].end_ns) == (span.start_ns, span.end_ns), story
    assert all(before.end_ns == after.start_ns for before, after in pairwise(phases)), story
    assert sum(s.duration_ns for s in phases) == span.duration_ns, story
    assert (span["ai.preemptions"] or 0) == len(story.of("preempted")), story
    assert len(story.of("prefill")) <= 1 + len(story.of("preempted")), story


def _late(story: Story) -> int:
    """Return how many steps were over after the request was: vLLM takes aborts in while a step runs."""
    late = len(story.parts) - sum(s["ai.steps"] or 0 for s in story.phases)
    assert late in ((0, 1) if story.finish_reason in ("abort", "stop") else (0,)), story
    return late


def _check_tokens(story: Story, parts: list[Part]) -> None:
    """Hold that each of its tokens is in one step, and that its phases say the same as the steps."""
    prompt = story["gen_ai.usage.input_tokens"]
    prefill, decode = sum(part.prefill for part in parts), sum(part.decode for part in parts)
    to_compute = prompt - story.cached + story.recomputed
    if story.computed or story["gen_ai.operation.name"] == "embeddings":
        rejected = (story["ai.speculative.drafted_tokens"] or 0) - (story["ai.speculative.accepted_tokens"] or 0)
        assert prefill == to_compute, story
        assert decode == max(0, story.computed - 1) + rejected, story
    else:
        assert (prefill <= to_compute, decode) == (True, 0), story
    if story.computed > 1:
        assert sum(s["gen_ai.usage.output_tokens"] for s in story.of("decode")) == story.computed, story
    assert sum(s["ai.steps"] or 0 for s in story.phases) == len(parts), story
    told = [chunk for s in story.of("prefill") for chunk in chunks(s)]
    assert told == [(part.batch["ai.batch.seq"], part.prefill) for part in parts if part.prefill], story
    if parts and not story["ai.speculative.drafted_tokens"]:
        _check_contexts(story, parts)


def _check_contexts(story: Story, parts: list[Part]) -> None:
    """Hold that it has before a step what it had computed in those before, unless it was preempted in between."""
    assert parts[0].context == story.cached, story
    moved = [
        before for before, after in pairwise(parts) if after.context != before.context + before.prefill + before.decode
    ]
    assert len(moved) <= len(story.of("preempted")), story


def chunks(span: CapturedSpan) -> list[tuple[int, int]]:
    """Return the steps that computed a prompt, each with its tokens."""
    steps = span["ai.prefill.chunk.batch_seq"] or b""
    count = len(steps) // 8
    tokens = unpack(f"<{count}I", span["ai.prefill.chunk.tokens"] or b"")
    return list(zip(unpack(f"<{count}Q", steps), tokens, strict=True))
