"""From reports to history: whatever order they come in, and however often."""

from __future__ import annotations

from itertools import groupby, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from axonize_server.registry.layers import rows_of, text_of, thing_of
from axonize_server.registry.sightings import GAP_NS, Sightings, Span, is_torn, link, merge, retold, spans_of

S = 10**9
MINUTE = 60 * S


def seen(*times, look="{}"):
    """A report of presence at each of the times, each by itself."""
    return [Sightings({look: [(t, t)]}, []) for t in times]


def gone(*times, agent="a"):
    return [Sightings({}, [(t, agent)]) for t in times]


def together(reports):
    """Take reports over one by one, with those taken so far at hand, as the store has them."""
    known, told = Sightings(), Sightings({}, [])
    for report in reports:
        for look, intervals in report.looks.items():
            told.looks.setdefault(look, []).extend(intervals)
        told.zeros.extend(report.zeros)
        if is_torn(known, report):
            known = retold(known, told)
        known = merge(known, report)
    return known


def history(*reports, variant=lambda _: ""):
    return spans_of(together([one for some in reports for one in some]), variant)


def minutes(*numbers):
    return [number * MINUTE for number in numbers]


def test_reports_close_together_are_one_stretch():
    """An hour of reports is one span from the first to the last."""
    assert history(seen(*minutes(*range(60)))) == [Span(0, 59 * MINUTE, None, ("{}",))]


def test_silence_parts_stretches():
    """Three minutes may pass between reports, one more nanosecond not."""
    assert history(seen(0, GAP_NS)) == [Span(0, GAP_NS, None, ("{}",))]
    assert [s[:3] for s in history(seen(0, GAP_NS + 1))] == [(0, 0, None), (GAP_NS + 1, GAP_NS + 1, None)]


def test_gone_ends_and_back_is_another():
    """A zero ends the stretch at its own time; what comes later is a stretch of its own."""
    spans = history(seen(*minutes(0, 1)), gone(90 * S), seen(*minutes(10, 11)))
    assert [s[:3] for s in spans] == [(0, MINUTE, 90 * S), (10 * MINUTE, 11 * MINUTE, None)]


def test_gone_and_back_at_once():
    """A zero and a one of the same time are a re-creation: the zero comes first."""
    spans = history(seen(*minutes(0, 1, 2)), gone(MINUTE))
    assert [s[:3] for s in spans] == [(0, 0, MINUTE), (MINUTE, 2 * MINUTE, None)]


def test_a_late_zero_parts_what_was_one():
    """A zero that comes after the reports around it makes the same history as one that came in time."""
    in_time = [*seen(*minutes(0, 1)), *gone(100 * S), *seen(*minutes(2, 3))]
    late = [*seen(*minutes(0, 1, 2, 3)), *gone(100 * S)]
    assert spans_of(together(in_time)) == spans_of(together(late))
    assert [s[:3] for s in spans_of(together(late))] == [(0, MINUTE, 100 * S), (2 * MINUTE, 3 * MINUTE, None)]


def test_gone_said_twice_is_gone_once():
    """Between two zeros there is nothing, however close the reports around them are."""
    spans = history(seen(0), gone(*minutes(1, 2)), seen(150 * S))
    assert [s[:3] for s in spans] == [(0, 0, MINUTE), (150 * S, 150 * S, None)]


def test_what_the_store_forgot_stays():
    """Told again by the reports the store still has, what came before them is kept."""
    old = together(seen(*minutes(0, 1, 2, 3, 4)))
    points = Sightings({"{}": [(t, t) for t in minutes(2, 3, 4)]}, [(200 * S, "a")])
    assert is_torn(old, points)
    assert [s[:3] for s in spans_of(retold(old, points))] == [(0, 3 * MINUTE, 200 * S), (4 * MINUTE, 4 * MINUTE, None)]
    assert retold(old, Sightings({}, [(1, "a")])) == old


def test_gone_only_is_no_history():
    """A zero about something never seen makes no row."""
    assert history(gone(0)) == []


def test_two_agents_tell_one_destruction():
    """Zeros of two agents within two minutes are one; two of the same agent are two."""
    of_both = history(seen(0, MINUTE, 66 * S, 2 * MINUTE), gone(65 * S), gone(70 * S, agent="b"))
    assert [s[:3] for s in of_both] == [(0, MINUTE, 65 * S), (66 * S, 2 * MINUTE, None)]
    assert [s[:2] for s in history(seen(0, 66 * S, 2 * MINUTE), gone(65 * S, 70 * S))] == [
        (0, 0),
        (66 * S, 66 * S),
        (2 * MINUTE, 2 * MINUTE),
    ]


def test_the_newest_words_are_last():
    """What was said about a stretch comes in the order in which it was said last, and belongs to that stretch only."""
    spans = history(seen(0, look="new"), gone(MINUTE), seen(MINUTE, 2 * MINUTE, look="old"), seen(90 * S, look="other"))
    assert [s.looks for s in spans] == [("new",), ("other", "old")]


def test_of_two_that_claim_one_time_the_later_has_it():
    """A context that moved to another resource left the first when it began on the second, though reports cross."""
    spans = history(seen(*minutes(0, 1, 2), look="x"), seen(*minutes(1, 2, 3), look="y"), variant=lambda look: look)
    assert [(s.first_ns, s.last_ns, s.looks) for s in spans] == [(0, MINUTE, ("x",)), (MINUTE, 3 * MINUTE, ("y",))]


REPORTS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 40), st.sampled_from(["x", "y"])).map(
            lambda p: Sightings({p[1]: [(p[0] * 20 * S, p[0] * 20 * S)]}, [])
        ),
        st.tuples(st.integers(0, 40), st.sampled_from("ab")).map(lambda p: Sightings({}, [(p[0] * 20 * S, p[1])])),
    ),
    max_size=14,
)


@settings(max_examples=150, deadline=None)
@given(REPORTS, st.data())
@pytest.mark.parametrize("variant", [lambda _: "", lambda look: look], ids=["one", "several"])
def test_any_order_and_repetition_ends_in_the_same_state(variant, reports, data):
    """Permuted, repeated, and merged in packets of any size, reports end in the same sightings and history."""
    straight = together(reports)
    repeated = [*reports, *data.draw(st.lists(st.sampled_from(reports)))] if reports else []
    other = together(data.draw(st.permutations(repeated)))
    assert other == straight
    assert spans_of(other, variant) == spans_of(straight, variant)


@settings(max_examples=150, deadline=None)
@given(REPORTS)
@pytest.mark.parametrize("variant", [lambda _: "", lambda look: look], ids=["one", "several"])
def test_history_never_overlaps_and_leaves_nothing_out(variant, reports):
    """Stretches follow each other, each ends before the next begins, and every report of presence is in one."""
    spans = spans_of(together(reports), variant)
    for one, following in pairwise(spans):
        assert (one.ended_ns or one.last_ns) <= following.first_ns
    for span in spans:
        assert span.first_ns <= span.last_ns <= (span.ended_ns or span.last_ns)
        assert span.looks
    for report in reports:
        for ((time_ns, _),) in report.looks.values():
            assert any(span.first_ns <= time_ns <= span.last_ns for span in spans)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)).map(lambda p: (p[0], p[0] + p[1]))))
def test_linking_is_what_it_says(intervals):
    """Linked intervals are in order, more than a gap apart, and cover the same as before."""
    linked = link(intervals, gap_ns=3)
    assert all(after[0] - before[1] > 3 for before, after in pairwise(linked))
    assert all(any(a <= first and last <= b for a, b in linked) for first, last in intervals)
    assert link(linked, gap_ns=3) == linked


CONTEXT = thing_of("context", "t", "node/1/cuda:0")


def context_rows(reports, now_ns):
    return [
        (row["compute_resource"], row["valid_from"][11:19], row["valid_to"] and row["valid_to"][11:19])
        for row in rows_of(CONTEXT, together(reports), now_ns)
    ]


def on(resource, **more):
    return text_of({"gpu.compute_resource.id": resource, **more})


def test_a_context_ends_by_silence():
    """Open while it is reported, ended at its last report three minutes later, and open again when late ones come."""
    reports = seen(*minutes(0, 1), look=on("MIG-1"))
    assert context_rows(reports, 2 * MINUTE) == [("MIG-1", "00:00:00", None)]
    assert context_rows(reports, 5 * MINUTE) == [("MIG-1", "00:00:00", "00:01:00")]
    assert context_rows([*reports, *seen(3 * MINUTE, look=on("MIG-1"))], 5 * MINUTE) == [("MIG-1", "00:00:00", None)]


def test_a_context_that_moves_is_two_holdings():
    """The same name on another slice, or of another process with the same pid, is another time it was held."""
    moved = [*seen(0, look=on("MIG-1")), *gone(MINUTE), *seen(MINUTE, look=on("MIG-2"))]
    assert context_rows(moved, MINUTE) == [("MIG-1", "00:00:00", "00:01:00"), ("MIG-2", "00:01:00", None)]
    one, two = (on("MIG-1", **{"service.instance.id": name}) for name in "ab")
    reused = [*seen(0, look=one), *seen(MINUTE, look=two)]
    assert context_rows(reused, MINUTE) == [("MIG-1", "00:00:00", "00:00:00"), ("MIG-1", "00:01:00", None)]


def test_silence_is_no_new_generation():
    """A resource nobody reported for an hour is the same; one that was gone in between is another."""
    thing = thing_of("compute_resource", "t", "MIG-1")
    rows = rows_of(thing, together([*seen(0, 3600 * S), *gone(3601 * S), *seen(3700 * S)]), 0)
    assert [(row["generation"], row["last_seen_at"][11:19], row["gone_at"] is not None) for row in rows] == [
        (1, "01:00:00", True),
        (2, "01:01:40", False),
    ]
    assert thing.tenant == ""


def test_hardware_is_one_row():
    """A GPU that was away and came back is the same GPU, no longer gone; an attribute keeps its newest value."""
    older, newer = text_of({"hw.name": "H100", "hw.driver_version": "1"}), text_of({"hw.driver_version": "2"})
    reports = [*seen(0, look=older), *gone(MINUTE), *seen(9 * MINUTE, look=newer)]
    (row,) = rows_of(thing_of("gpu", "", "GPU-1"), together(reports), 0)
    assert (row["model"], row["driver_version"], row["gone_at"]) == ("H100", "2", None)
    (gone_row,) = rows_of(thing_of("gpu", "", "GPU-1"), together([*reports, *gone(10 * MINUTE)]), 0)
    assert gone_row["gone_at"] == "1970-01-01T00:10:00.000000000Z"
    assert rows_of(thing_of("gpu", "", "GPU-1"), together(gone(0)), 0) == []


def test_a_value_of_the_wrong_type_is_unknown():
    """Texts where numbers belong, numbers no column holds, and NUL leave the column null or clean, never stop the rest."""
    look = text_of(
        {
            "process.pid": "7",
            "ai.rank": 1 << 40,
            "k8s.pod.name": "a\0b",
            "gpu.device": 3,
            "gpu.compute_resource.id": "M",
        }
    )
    (row,) = rows_of(CONTEXT, together(seen(0, look=look)), 0)
    assert (row["pid"], row["rank"], row["pod"], row["device"]) == (None, None, "ab", None)
    slice_look = text_of({"gpu.sm.share": True, "gpu.mig.gi_id": True, "gpu.memory.total_bytes": -1})
    (row,) = rows_of(thing_of("compute_resource", "", "M"), together(seen(0, look=slice_look)), 0)
    assert (row["sm_share"], row["gpu_instance_id"], row["memory_bytes"]) == (None, None, None)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.booleans()), unique_by=lambda p: p[0], max_size=12))
def test_of_one_agent_every_change_is_a_stretch(changes):
    """What one agent says is taken at its word: each run of ones is a stretch, ended by the zero that follows."""
    reports = [one for time_s, present in changes for one in (seen(time_s * S) if present else gone(time_s * S))]
    expected = []
    for present, run in groupby(sorted(changes), key=lambda change: change[1]):
        times = [time_s * S for time_s, _ in run]
        if present:
            expected.append((times[0], times[-1], None))
        elif expected:
            expected[-1] = (*expected[-1][:2], times[0])
    assert [span[:3] for span in spans_of(together(reports))] == expected
