"""Records → events where a scheduler tells every step: phases, chunks, preemption, drafts, lost records."""

from __future__ import annotations

import pytest

from axonize_core.frames import Hello, Kind, Record, Records
from axonize_core.steps import MOST_ENDED
from axonize_core.testing import CountingIds
from axonize_core.timeline import Timeline

ENGINE = ("vllm", "svc", "tiny", "vllm", ("workers", 0, None), None)


class Engine:
    """Speaks frames to a timeline as an engine core would; step n begins at 100 n and ends at 100 n + 90."""

    def __init__(self):
        self.timeline = Timeline(Hello(1, "v", 42, "inst", {}, "f"), CountingIds())
        self.seq = self.dropped = 0
        self.events = {"requests": [], "prefills": [], "decodes": [], "batches": []}

    def tell(self, *records):
        sources = [] if self.seq else [(1, ENGINE), (2, ENGINE)]
        told = [Record(*record) for record in records]
        events = self.timeline.feed(Records(self.seq, 0, 0, self.dropped, told, sources))
        self.seq += 1
        for name in self.events:
            self.events[name] += getattr(events, name)
        return events

    def open(self, seq, name, prompt=8, *, at=0, operation="chat"):
        self.tell((Kind.REQUEST, seq, [1, at, name, None, operation, prompt, None, name], at))

    def step(self, n, members, *, cached=(), started=None, preempted=None, drafts=None):
        told = None if members is None else [members, [name for name, _ in cached], [tokens for _, tokens in cached]]
        at = 100 * n
        payload = [1, at, at + 10, at + 80, told, started, preempted, drafts, 1, 2, 0.25]
        return self.tell((Kind.STEP, n, payload, at + 90)).batches

    def end(self, seq, at, tokens, reason="length"):
        return self.tell((Kind.REQUEST_END, seq, [reason, 8, tokens, None, None], at)).requests[0]

    def phases(self):
        """Return every phase of all requests as (kind, start, end), in order."""
        found = [("prefill", e.start_ns, e.start_ns + e.duration_ns) for e in self.events["prefills"]]
        found += [("decode", e.start_ns, e.start_ns + e.duration_ns) for e in self.events["decodes"]]
        found += [("preempted", s, s + d) for r in self.events["requests"] for s, d in r.preemptions]
        return sorted(found, key=lambda phase: phase[1:])


def test_phases_follow_one_another_without_a_gap():
    """Queue, prefill in two chunks, decode: their times add up to the request's, and chunks name their steps."""
    engine = Engine()
    engine.open(7, "a", at=50)
    (first,) = engine.step(1, {"a": 6}, started=[["a", 2, 8]])
    engine.step(2, {"a": 1}, cached=[("a", 8)])
    engine.step(3, None)
    (last,) = engine.step(4, None)
    ended = engine.end(7, 490, 4)
    assert (first.prefill_tokens, first.decode_tokens, first.context_tokens) == ((6,), (0,), (2,))
    assert (last.prefill_tokens, last.decode_tokens, last.context_tokens) == ((0,), (1,), (10,))
    assert (first.schedule_ns, first.execute_ns, first.update_ns, first.duration_ns) == (10, 70, 10, 90)
    assert (first.running, first.waiting, first.kv_cache_usage) == (1, 2, 0.25)
    assert [ref.seq for ref in first.joined] == [7]
    assert last.joined == ()
    assert (ended.queue_ns, ended.ttft_ns, ended.cached_tokens, ended.engine_id) == (50, 140, 2, "a")
    assert ended.tpot_ns == 100
    assert engine.phases() == [("prefill", 100, 190), ("decode", 190, 490)]
    (prefill,), (decode,) = engine.events["prefills"], engine.events["decodes"]
    assert prefill.chunks == ((first.seq, 6),)
    assert (prefill.tokens, prefill.cached_tokens, prefill.recomputed_tokens, prefill.steps) == (8, 2, None, 1)
    assert (decode.tokens, decode.steps, decode.itl_p50_ns, decode.itl_max_ns) == (4, 3, 100, 100)


def test_a_preempted_request_computes_again_what_it_lost():
    """Preempted, resumed: another prefill says how much was computed again; tokens are in exactly one decode."""
    engine = Engine()
    engine.open(7, "a")
    engine.step(1, {"a": 8}, started=[["a", 0, 8]])
    engine.step(2, {"a": 1}, cached=[("a", 8)])
    assert engine.step(3, {}, preempted=["a"]) == []
    (again,) = engine.step(4, {"a": 10}, cached=[("a", 0)])
    engine.step(5, {"a": 1}, cached=[("a", 10)])
    ended = engine.end(7, 590, 4)
    assert (again.prefill_tokens, again.decode_tokens) == ((9,), (1,))
    assert engine.phases() == [
        ("prefill", 100, 190),
        ("decode", 190, 300),
        ("preempted", 300, 400),
        ("prefill", 400, 490),
        ("decode", 490, 590),
    ]
    first, second = engine.events["prefills"]
    assert (first.tokens, second.tokens, second.recomputed_tokens, second.cached_tokens) == (8, None, 9, None)
    assert [decode.tokens for decode in engine.events["decodes"]] == [2, 2]
    assert (ended.cached_tokens, len(ended.preemptions)) == (0, 1)


def test_an_answer_of_one_token_has_no_decode():
    """What the engine does after it until it is done belongs to the prefill, and the times still add up."""
    engine = Engine()
    engine.open(7, "a")
    engine.step(1, {"a": 8}, started=[["a", 0, 8]])
    ended = engine.end(7, 193, 1)
    assert engine.phases() == [("prefill", 100, 193)]
    assert (ended.ttft_ns, ended.tpot_ns, ended.output_tokens) == (190, None, 1)


def test_only_what_was_computed_before_is_computed_again():
    """Preempted in the middle of its prompt, and again while that is recomputed: the sums hold, and no token twice."""
    engine = Engine()
    engine.open(7, "a")
    engine.step(1, {"a": 5}, started=[["a", 0, 8]])
    engine.step(2, {}, preempted=["a"])
    engine.step(3, {"a": 8}, cached=[("a", 0)])
    engine.step(4, {"a": 1}, cached=[("a", 8)])
    engine.step(5, {"a": 1}, cached=[("a", 9)])
    engine.step(6, {}, preempted=["a"])
    engine.step(7, {"a": 2}, cached=[("a", 4)])
    engine.step(8, {}, preempted=["a"])
    (last,) = engine.step(9, {"a": 7}, cached=[("a", 4)])
    assert (last.prefill_tokens, last.decode_tokens) == ((6,), (1,))
    assert not engine.end(7, 990, 4).incomplete
    assert [e.recomputed_tokens for e in engine.events["prefills"]] == [None, 5, 2, 6]
    members = [batch for batch in engine.events["batches"] if batch.request_seqs]
    assert sum(sum(batch.prefill_tokens) for batch in members) == 8 + 5 + 2 + 6
    assert sum(sum(batch.decode_tokens) for batch in members) == 3


def test_a_step_that_is_planned_while_one_runs_may_preempt():
    """The token of the running step still comes, and the phases follow one another without a gap all the same."""
    engine = Engine()
    engine.open(7, "a")
    engine.step(1, {"a": 8}, started=[["a", 0, 8]])
    planned = [1, 150, 160, 290, [{}, [], []], None, ["a"], None, 0, 1, 0.25]
    engine.tell((Kind.STEP, 2, planned, 300))
    engine.step(4, {"a": 9}, cached=[("a", 0)])
    ended = engine.end(7, 490, 2)
    phases = engine.phases()
    assert phases == [
        ("prefill", 100, 190),
        ("decode", 190, 190),
        ("preempted", 190, 400),
        ("prefill", 400, 490),
    ]
    assert ended.queue_ns + sum(end - start for _, start, end in phases) == ended.duration_ns


def test_a_request_preempted_before_it_began_keeps_its_queue():
    """What was never scheduled cannot be preempted, and one that was aborted meanwhile ends preempted."""
    engine = Engine()
    engine.open(7, "a")
    engine.step(1, {}, preempted=["a", "nobody"])
    engine.step(2, {"a": 5}, started=[["a", 0, 8]])
    engine.step(3, {}, preempted=["a"])
    engine.step(4, {}, preempted=["a"])
    ended = engine.end(7, 500, 0, "abort")
    assert (ended.queue_ns, ended.ttft_ns, ended.tpot_ns) == (200, None, None)
    assert engine.phases() == [("prefill", 200, 300), ("preempted", 300, 500)]


def test_verified_drafts_give_several_tokens_a_step():
    """A step with two drafts of which one was right computes three tokens and gives two; the context grows by two."""
    engine = Engine()
    engine.open(7, "a")
    engine.step(1, {"a": 8}, started=[["a", 0, 8]])
    (verified,) = engine.step(2, {"a": 3}, cached=[("a", 8)], drafts={"a": [2, 2]})
    (after,) = engine.step(3, {"a": 1}, cached=[("a", 10)], drafts={"a": [0, 1]})
    ended = engine.end(7, 400, 4)
    assert (verified.decode_tokens, after.context_tokens) == ((3,), (10,))
    assert (ended.drafted_tokens, ended.accepted_tokens) == (2, 1)
    assert [decode.tokens for decode in engine.events["decodes"]] == [4]


def test_a_step_that_was_planned_before_drafts_were_verified_begins_where_they_ended():
    """Its scheduler took both drafts for right, of which none was; what is computed again after a preemption is less."""
    engine = Engine()
    engine.open(7, "a")
    engine.step(1, {"a": 8}, started=[["a", 0, 8]])
    engine.step(2, {"a": 3}, cached=[("a", 8)], drafts={"a": [2, 1]})
    (ahead,) = engine.step(3, {"a": 3, "z": 1}, cached=[("a", 11), ("z", 4)], drafts={"a": [2, 0]})
    engine.step(4, {}, preempted=["a"])
    (again,) = engine.step(5, {"a": 10}, cached=[("a", 0)])
    assert (ahead.context_tokens, ahead.decode_tokens) == ((9,), (3,))
    assert (again.prefill_tokens, again.decode_tokens) == ((9,), (1,))
    assert not engine.end(7, 590, 3).incomplete


def test_an_embedding_has_no_tokens_and_no_decode():
    """A pooling model's request is one prefill."""
    engine = Engine()
    engine.open(7, "a", operation="embeddings")
    engine.step(1, {"a": 8}, started=[["a", 0, 8]])
    ended = engine.end(7, 190, None, "stop")
    assert (ended.ttft_ns, ended.drafted_tokens) == (None, None)
    assert engine.phases() == [("prefill", 100, 190)]


def test_one_token_is_a_prefill_alone():
    """A phase that took no time never was."""
    engine = Engine()
    engine.open(7, "a")
    engine.step(1, {"a": 8}, started=[["a", 0, 8]])
    assert engine.end(7, 190, 1).ttft_ns == 190
    assert engine.phases() == [("prefill", 100, 190)]


def test_a_request_that_was_never_scheduled_only_queued():
    """Aborted while it waited, its time is its queue."""
    engine = Engine()
    engine.open(7, "a", at=50)
    ended = engine.end(7, 80, 0, "abort")
    assert (ended.queue_ns, ended.duration_ns) == (30, 30)
    assert engine.phases() == []


def test_a_step_that_was_planned_before_a_request_ended_still_has_it():
    """Schedulers plan ahead: the request is a member of the next step too, and its own story stays as it ended."""
    engine = Engine()
    engine.open(7, "a")
    engine.open(8, "b")
    engine.step(1, {"a": 8, "b": 8}, started=[["a", 0, 8], ["b", 0, 8]])
    engine.step(2, {"a": 1, "b": 1}, cached=[("a", 8), ("b", 8)])
    engine.end(7, 290, 2)
    (ahead,) = engine.step(3, None)
    assert ahead.request_seqs == (7, 8)
    assert (ahead.decode_tokens, ahead.context_tokens, ahead.incomplete) == ((1, 1), (9, 9), False)
    assert [decode.tokens for decode in engine.events["decodes"]] == [2]


def test_a_session_that_gets_more_input_computes_a_longer_prompt():
    """Streaming input: what was answered so far became part of the prompt, and the next input is another prefill."""
    engine = Engine()
    engine.open(7, "a")
    engine.step(1, {"a": 8}, started=[["a", 0, 8]])
    engine.step(2, {"a": 1}, cached=[("a", 8)])
    (more,) = engine.step(5, {"a": 4}, started=[["a", 9, 13]])
    engine.step(6, {"a": 1}, cached=[("a", 13)])
    ended = engine.end(7, 690, 2)
    assert (ended.output_tokens, ended.incomplete) == (4, False)
    assert more.prefill_tokens == (4,)
    assert engine.phases() == [
        ("prefill", 100, 190),
        ("decode", 190, 500),
        ("prefill", 500, 590),
        ("decode", 590, 690),
    ]


def test_after_lost_records_a_step_must_name_its_members_again():
    """ "The same as before" means nothing when what was before is lost: it is counted, and nothing is made up."""
    engine = Engine()
    engine.open(7, "a")
    engine.step(1, {"a": 8}, started=[["a", 0, 8]])
    engine.dropped = 3
    assert engine.step(2, None) == []
    assert engine.timeline.orphan_records == 1
    (known,) = engine.step(3, {"a": 1, "z": 1}, cached=[("a", 9), ("z", 4)])
    assert (known.request_seqs, known.context_tokens, known.incomplete) == ((7,), (9,), True)
    assert engine.timeline.orphan_records == 2
    assert engine.end(7, 400, 3).incomplete


def test_members_whose_start_was_lost_are_placed_where_the_step_says():
    """A request that is first heard of in the middle starts there; one that nothing is said of starts at nothing."""
    engine = Engine()
    engine.open(7, "a")
    engine.open(8, "b")
    (step,) = engine.step(3, {"a": 1, "b": 1}, cached=[("a", 11)])
    assert step.context_tokens == (11, 0)


def test_two_engines_of_one_process_are_told_apart():
    """Each has its own members, whatever the other's are called."""
    engine = Engine()
    engine.open(7, "a")
    engine.tell((Kind.REQUEST, 8, [2, 0, "b", None, "chat", 8, None, "b"], 0))
    engine.step(1, {"a": 8}, started=[["a", 0, 8]])
    other = [2, 200, 210, 280, [{"b": 8}, [], []], [["b", 0, 8]], None, None, 1, 0, None]
    (step,) = engine.tell((Kind.STEP, 1, other, 290)).batches
    assert (step.request_seqs, step.seq) == ((8,), 2)
    assert engine.end(7, 300, 1).queue_ns == 100
    assert engine.end(8, 300, 1).queue_ns == 200


def test_what_front_ends_say_is_handed_on():
    """Answers carry their source and an epoch time; the pipeline joins them."""
    engine = Engine()
    engine.open(7, "a")
    (answer,) = engine.tell((Kind.ANSWER, 1, ["a", "ended", "stop", 3, None, None, None], 50)).answers
    assert (answer.engine_id, answer.what, answer.time_ns) == ("a", "ended", 50)
    assert answer.facts == ("stop", 3, None, None, None)
    assert answer.source.engine == "vllm"


def test_a_step_of_which_only_counts_are_known():
    """Where the scheduler is not recorded, vLLM's own statistics still say how large a step was."""
    engine = Engine()
    (step,) = engine.tell((Kind.STEP_COUNTS, 9, [1, 40, 1, 8, 3, 3, 4, 0, 0.5], 100)).batches
    assert (step.start_ns, step.duration_ns, step.counts, step.request_seqs) == (60, 40, (4, 8, 3), ())
    assert (step.running, step.waiting, step.kv_cache_usage, step.engine_step) == (4, 0, 0.5, 9)


def test_device_times_are_handed_on():
    """The pipeline joins them to the steps."""
    engine = Engine()
    found = engine.tell((Kind.STEP_DEVICE, 0, ["e/0", [[1, 500], [2, 600]]], 100)).device_times
    assert found == [("e/0", 1, 500), ("e/0", 2, 600)]


def test_tokens_that_do_not_add_up_are_said_to_be_incomplete():
    """Where the engine counts other tokens than its steps gave, something of it was not seen."""
    engine = Engine()
    for seq, tokens in ((7, 1), (8, 2)):
        engine.open(seq, f"r{seq}")
        engine.step(seq, {f"r{seq}": 8}, started=[[f"r{seq}", 0, 8]])
        assert engine.end(seq, 100 * seq + 90, tokens).incomplete is (tokens == 2)


def test_what_is_no_step_is_counted():
    """Ids and contexts that do not match cost the record only."""
    engine = Engine()
    engine.open(7, "a")
    engine.tell((Kind.STEP, 1, [1, 0, 0, 0, [{"a": 1}, ["a"], []], None, None, None, 1, 1, None], 9))
    assert engine.timeline.orphan_records == 1


def test_an_engine_that_died_leaves_what_was_known():
    """What was live ends at its last step, incomplete, with its phases."""
    engine = Engine()
    engine.open(7, "a")
    engine.step(1, {"a": 8}, started=[["a", 0, 8]])
    engine.step(2, None)
    events = engine.timeline.close("engine_lost")
    assert [(r.error, r.incomplete, r.duration_ns, r.ttft_ns) for r in events.requests] == [
        ("engine_lost", True, 290, 190)
    ]
    assert [(p.duration_ns, d.duration_ns) for p, d in zip(events.prefills, events.decodes, strict=True)] == [(90, 100)]


@pytest.mark.parametrize("extra", [0, 5])
def test_ended_requests_are_remembered_for_a_while(extra):
    """Only so many: an engine may run for months."""
    engine = Engine()
    for seq in range(MOST_ENDED + extra):
        engine.open(seq, f"r{seq}")
        engine.end(seq, 10, 0, "abort")
    (found,) = engine.step(1, {"r0": 1, f"r{seq}": 1})
    assert found.request_seqs == ((seq,) if extra else (0, seq))
