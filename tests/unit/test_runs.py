from __future__ import annotations

import itertools
from array import array

from hypothesis import given
from hypothesis import strategies as st

from axonize_core.events import SourceInfo
from axonize_core.runs import Run

SOURCE = SourceInfo("i", "transformers", "s", "m", "p", ("cpu", 0, None), {}, 1)


def run(times, *, new_tokens=None, mode="generate", prompts=(4, 6), end_ns=None, start_ns=90):
    return Run(SOURCE, tuple(range(len(prompts))), prompts, mode, start_ns, 0, array("q", times), end_ns, new_tokens)


def test_tokens_are_visible_when_the_next_step_begins():
    """Token k is seen when step k+1 begins, the last one when the run ends."""
    r = run([100, 110, 125], new_tokens=3, end_ns=140)
    assert [r.token_ns(k) for k in (1, 2, 3)] == [110, 125, 140]
    assert r.token_ns(0) is None
    assert r.token_ns(4) is None
    assert r.first_visible_ns() == 110
    assert r.last_visible_ns(None) == 140
    assert r.last_visible_ns(2) == 125
    assert r.tpot_ns(3) == 15
    assert r.tpot_ns(1) is None
    assert r.gap_statistics(3) == (15, 15, 15) == r.gap_statistics(3)
    assert r.gap_statistics(1) is None
    assert r.decode_steps(3) == 2


def test_chunks_of_the_prompt_come_before_the_first_token():
    """Steps beyond the number of tokens are chunks of the prompt."""
    r = run([100, 105, 110, 125], new_tokens=2, end_ns=140)
    assert r.prompt_steps == 3
    assert [r.token_ns(k) for k in (1, 2)] == [125, 140]


def test_several_sequences_of_a_request_share_positions():
    """With num_return_sequences the tokens of a request exceed its positions; times go by position."""
    r = run([100, 110, 125], new_tokens=3, end_ns=140)
    assert r.last_visible_ns(6) == 140
    assert r.tpot_ns(6) == 15
    assert r.decode_steps(6) == 2
    assert r.gap_statistics(6) == (15, 15, 15)


def test_fewer_steps_than_tokens_leave_the_missing_times_unknown():
    """A time that was not seen is None, never a guess."""
    r = run([100], new_tokens=3, end_ns=140)
    assert r.token_ns(1) is None
    assert r.tpot_ns(3) is None
    assert r.gap_statistics(2) is None


def test_forward_has_one_step_and_no_tokens():
    """A classification is prompt only."""
    r = run([], mode="forward", end_ns=120)
    assert r.first_visible_ns() == 120
    assert r.last_visible_ns(None) is None
    assert r.tpot_ns(None) is None
    (step,) = r.steps()
    assert (step.start_ns, step.end_ns) == (90, 120)
    assert step.prefill_tokens == (4, 6)
    assert step.decode_tokens == (0, 0)
    assert r.decode_steps(None) == 0


def test_prompts_of_unknown_length_leave_their_columns_empty():
    """Unknown prompt tokens are unknown in every step; who took part is known all the same."""
    r = Run(SOURCE, (1, 2), (), "generate", 90, 0, array("q", [100, 110]), 120, 2)
    first, second = r.steps()
    assert (first.prefill_tokens, first.context_tokens) == ((), ())
    assert (second.decode_tokens, second.context_tokens) == ((1, 1), ())


def test_speculative_steps_are_not_tokens():
    """Assisted decoding yields steps; what each of them decoded is unknown, not zero."""
    r = run([100, 110, 120], new_tokens=7, mode="speculative", end_ns=130)
    assert r.first_visible_ns() == 110
    assert r.last_visible_ns(7) == 130
    assert r.token_ns(2) is None
    assert r.gap_statistics(7) is None
    assert r.decode_steps(7) == 2
    first, second, third = r.steps()
    assert first.prefill_tokens == (4, 6)
    assert second.decode_tokens == () == third.context_tokens
    assert run([100], mode="speculative", end_ns=130).first_visible_ns() == 130


def test_the_last_time_is_what_was_seen():
    """Before its end a run's last time is that of its last step, or its start."""
    assert run([]).last_ns == 90
    assert run([100, 110]).last_ns == 110
    assert run([100], end_ns=111).last_ns == 111


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=4),
    st.integers(1, 40),
    st.integers(0, 5),
    st.data(),
)
def test_members_tokens_add_up(prompts, new_tokens, extra_chunks, data):
    """Prompt shares add up to the prompt; decode positions to tokens - 1; steps follow each other without gaps."""
    gaps = data.draw(
        st.lists(st.integers(1, 10**9), min_size=new_tokens + extra_chunks, max_size=new_tokens + extra_chunks)
    )
    times = [1000]
    for gap in gaps[:-1]:
        times.append(times[-1] + gap)
    r = run(times, new_tokens=new_tokens, prompts=tuple(prompts), end_ns=times[-1] + gaps[-1])
    steps = list(r.steps())
    for row, prompt in enumerate(prompts):
        assert sum(s.prefill_tokens[row] for s in steps) == prompt
        assert sum(s.decode_tokens[row] for s in steps) == new_tokens - 1
        assert steps[-1].context_tokens[row] <= prompt + new_tokens
    assert all(a.end_ns == b.start_ns for a, b in itertools.pairwise(steps))
    assert r.token_ns(new_tokens) == r.end_ns
