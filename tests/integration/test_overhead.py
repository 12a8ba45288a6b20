"""`axonize bench overhead` as a user runs it, short."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from axonize_core.bench import engine, overhead
from axonize_core.bench.agent_process import BenchError
from axonize_core.bench.overhead import OverheadOptions, measure_overhead

AXONIZE = Path(sys.executable).parent / "axonize"


def axonize(*arguments, **env):
    return subprocess.run(
        [AXONIZE, *arguments], env={**os.environ, **env}, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_command_measures_and_writes_a_report(tmp_path):
    """Three rounds with the synthetic step: every number is there, all that was recorded was exported, nothing lost."""
    output = tmp_path / "report.md"
    command = ("bench", "overhead", "--engine", "synthetic", "--rounds", "3", "--output", str(output))
    result = axonize(*command)
    assert result.returncode == 0, result.stderr
    assert output.read_text() == result.stdout
    assert f"`axonize {' '.join(command)}`" in result.stdout
    for line in ("With Axonize on: ", "| tokens/s ", "| agent, memory       | ", "| lost                | nothing "):
        assert line in result.stdout


def test_a_real_model_is_measured():
    """On and off make as many tokens; while on, each token's step and each request became spans."""
    pytest.importorskip("transformers")
    told = []
    report = measure_overhead(
        OverheadOptions(rounds=3, segment_s=0.05), progress=lambda done, of: told.append((done, of))
    )
    design, agent = report["design"], report["agent"]
    assert "axonize-demo-llama" in design["workload"]
    assert told[-1] == (3, 3)
    assert report["machine"]["versions"]["transformers"]
    assert report["tokens_per_s"]["on"] > 0
    assert report["difference"]["low"] <= report["difference"]["share"] <= report["difference"]["high"]
    # Per call: 32 steps, and request, queue, prefill and decode of four requests; the warm-up makes some more.
    calls = 2 * 3 * design["calls_per_segment"]
    assert agent["spans_exported"] >= calls * (32 + 4 * 4)
    assert agent["spans_exported"] % (32 + 4 * 4) == 0
    assert not any(agent["lost"].values()), agent["lost"]
    assert report["errors"] == agent["failures"] == {}
    assert report["flushed"] is True
    json.dumps(report)


class Slower:
    """Work that costs a tenth more while it is on."""

    _block = bytes(1_500_000)
    _on = False

    def switch(self, *, on):
        self._on = on

    def run(self):
        for _ in range(22 if self._on else 20):
            hashlib.sha256(self._block).digest()
        return 20


def test_a_known_overhead_is_found():
    """Of work that takes 10 % more CPU while on, the design says 10 %, and of off against off nothing."""
    orders = itertools.islice(itertools.cycle(itertools.permutations(engine.CONDITIONS)), 18)
    rounds = [engine._round(Slower(), 1, order) for order in orders]
    assert 0.06 < overhead._interval(rounds, "on", "cpu_s")["share"] < 0.14
    assert abs(overhead._interval(rounds, "control", "cpu_s")["share"]) < 0.04


def test_a_workload_that_fails_says_why():
    """The reason of the measured process is the command's."""
    with pytest.raises(BenchError, match="nothing to measure 'vllm' with"):
        measure_overhead(OverheadOptions(engine="vllm"))
