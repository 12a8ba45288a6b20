"""The statistics and the text of `axonize bench overhead`; what it measures is tested in integration."""

from __future__ import annotations

import random

import pytest

from axonize_core.bench import workload
from axonize_core.bench.emit_cost import emit_cost
from axonize_core.bench.intervals import Interval, paired_interval, quantile
from axonize_core.bench.overhead import OverheadOptions, measure_overhead
from axonize_core.bench.overhead_report import overhead_markdown, verdict
from axonize_core.errors import AxonizeError, ConfigurationError
from axonize_core.testing import capture_events


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Of 60 samples with a known mean, at least 50 intervals of 95 % hold it (a bootstrap of 20 is a little narrow)."""
    chance = random.Random(3)
    found = [paired_interval([chance.gauss(0.99, 0.03) for _ in range(20)]) for _ in range(60)]
    assert sum(i.low <= -0.01 <= i.high for i in found) >= 50
    assert all(i.low < i.share < i.high for i in found)


def test_odd_rounds_do_not_move_it():
    """A fifth of the rounds spoiled by a neighbour leaves the difference where it was."""
    chance = random.Random(3)
    quiet = [chance.gauss(0.99, 0.002) for _ in range(40)]
    spoiled = [*quiet[:33], *[1.5] * 7]
    assert abs(paired_interval(spoiled).share - paired_interval(quiet).share) < 0.002


def test_equal_rounds_have_no_width_and_too_few_no_interval():
    """The same data gives the same interval; two rounds give none."""
    assert paired_interval([1.01] * 5) == pytest.approx(Interval(0.01, 0.01, 0.01))
    assert paired_interval([1.01, 1.02, 1.03]) == paired_interval([1.01, 1.02, 1.03])
    assert paired_interval([0.5, 2.0] * 5).share == pytest.approx(0)
    with pytest.raises(ValueError, match="2 rounds are too few"):
        paired_interval([1.1, 1.2])


def test_quantiles():
    """The nearest value there is."""
    assert [quantile([1, 2, 3, 4], share) for share in (0, 0.5, 0.99, 1)] == [1, 3, 4, 4]


REPORT = {
    "machine": {"cpu": None, "cores": 2, "memory_bytes": None, "system": "Linux", "versions": {"python": "3.11"}},
    "design": {
        "workload": "w",
        "device": "cpu",
        "rounds": 3,
        "calls_per_segment": 4,
        "segment_s": 0.25,
        "pinned_to_cpu": None,
        "load_average_before": None,
        "endpoint": "http://x",
    },
    "tokens_per_s": {"off": 1000.0, "on": 990.0, "control": 1001.0},
    "latency_ms": {c: {"p50": 1.0, "p95": 2.0, "p99": 3.0} for c in ("off", "on", "control")},
    **{
        name: {"share": -0.01, "low": -0.012, "high": -0.008}
        for name in ("difference", "p50_difference", "p50_control", "cpu_difference", "cpu_control")
    },
    "control": {"share": 0.001, "low": -0.002, "high": 0.003},
    "emit": {"emit_ns": 100.0, "clock_ns": 40.0},
    "agent": {
        "cpu_share": None,
        "rss_bytes": None,
        "records_per_s": 10.0,
        "spans_per_s": 20.0,
        "lost": {"records_dropped": 0, "spans_dropped": 3},
        "failures": {},
    },
    "errors": {},
}


def test_the_report_says_what_is_unknown_and_what_was_lost():
    """Unknown is a dash, never 0; losses have names; the command can be repeated."""
    text = overhead_markdown(REPORT, "axonize bench overhead")
    assert "machine: –, 2 cores, –, Linux" in text
    assert "| agent, CPU while on | – " in text
    assert "| lost                | spans_dropped 3 " in text
    assert "| failures            | none " in text
    assert "`axonize bench overhead`" in text
    assert "1.00 % fewer tokens/s: -1.00 % (95 % interval -1.20 … -0.80 %)" in text


def test_the_verdict_claims_nothing_that_the_interval_does_not_show():
    """An interval over zero is no difference, and where off differs from off nothing can be said."""
    unclear = {**REPORT, "difference": {"share": -0.01, "low": -0.03, "high": 0.01}}
    assert "no difference in tokens/s can be seen" in verdict(unclear)
    noisy = {**REPORT, "control": {"share": 0.001, "low": -0.03, "high": 0.03}}
    assert "too noisy here to tell" in verdict(noisy)
    biased = {**REPORT, "control": {"share": 0.005, "low": 0.004, "high": 0.006}}
    assert "too noisy here to tell" in verdict(biased)
    more = {**REPORT, "difference": {"share": 0.01, "low": 0.005, "high": 0.02}}
    assert "1.00 % more tokens/s" in verdict(more)


def test_the_synthetic_workload_records_what_it_does():
    """On: 4 requests of 32 tokens in 32 steps; off: nothing. The work is as many tokens."""
    with capture_events() as seen:
        work = workload.Synthetic()
        tokens = [work.run()]
        work.switch(on=True)
        tokens.append(work.run())
        work.switch(on=False)
        tokens.append(work.run())
    assert tokens == [128, 128, 128]
    assert [event.output_tokens for event in seen.requests] == [32] * 4
    assert len(seen.batches) == 32
    assert all(event.ttft_ns > 0 for event in seen.requests)


def test_what_to_measure_with_is_said_when_it_is_not_there(monkeypatch):
    """An unknown engine names those there are; a model without a framework says what to install."""
    assert isinstance(workload.find_workload("synthetic", None), workload.Synthetic)
    with pytest.raises(ConfigurationError, match=r"nothing to measure 'vllm' with; there is .*synthetic"):
        workload.find_workload("vllm", None)
    monkeypatch.setattr(workload, "_is_installed", lambda _: False)
    assert isinstance(workload.find_workload(None, None), workload.Synthetic)
    with pytest.raises(ConfigurationError, match="pip install transformers"):
        workload.find_workload(None, "gpt2")


def test_emit_is_measured_beside_the_clock():
    """Both cost something, and emit more than the clock that it reads."""
    cost = emit_cost()
    assert 0 < cost["clock_ns"] < cost["emit_ns"] < 100_000


def test_nothing_is_measured_while_switched_off(monkeypatch):
    """Off against off would look like a good result."""
    monkeypatch.setenv("AXONIZE_DISABLED", "true")
    with pytest.raises(AxonizeError, match="switched off by AXONIZE_DISABLED"):
        measure_overhead(OverheadOptions())


def test_the_time_allowed_decides_the_rounds():
    """Under a second a round, three at least."""
    assert OverheadOptions.lasting(120).rounds == 153
    assert OverheadOptions.lasting(1).rounds == 3
