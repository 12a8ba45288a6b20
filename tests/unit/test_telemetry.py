"""What /metrics says can be parsed, and the alert rules ask for what is there."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from axonize_server.health import Counters, Health
from axonize_server.refused import FOLDER
from axonize_server.settings import Settings
from axonize_server.stats import write_stats
from axonize_server.telemetry import METRICS, Histogram, Sample, exposition

ALERTS = Path(__file__).resolve().parents[2] / "examples" / "prometheus" / "axonize-alerts.yaml"
_SAMPLE = re.compile(r'([a-zA-Z_:][\w:]*)(?:\{((?:\w+="(?:[^"\\\n]|\\[\\"n])*",?)+)\})? (-?[\d.]+(?:e[+-]\d+)?)')
_LABEL = re.compile(r'(\w+)="((?:[^"\\\n]|\\[\\"n])*)"')
_PARTS = ("_bucket", "_sum", "_count")


def parse(text):
    """Read the text format strictly: types and help first, the samples of a metric together, none twice."""
    kinds, helps, values, order = {}, {}, {}, []
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith("#"):
            _, what, name, rest = line.split(" ", 3)
            known = {"HELP": helps, "TYPE": kinds}[what]
            assert name not in known
            known[name] = rest
            continue
        name, labels, value = _SAMPLE.fullmatch(line).groups()
        family = next((name.removesuffix(part) for part in _PARTS if name.removesuffix(part) in kinds), name)
        assert family in kinds, f"{name} has no type"
        assert family in helps
        assert kinds[family] == "histogram" or name == family
        key = name, tuple(_LABEL.findall(labels or ""))
        assert key not in values, f"{key} stands twice"
        values[key] = float(value)
        order.append(family)
    assert len([a for a, b in pairwise(order) if a != b]) == len(set(order)) - 1, "together"
    return kinds, values


class Nothing:
    """A store and a registry nobody asks."""


@pytest.fixture
def health(tmp_path):
    counters = Counters()
    counters.refused_by_cause = Counter({"data": 2, "version": 1})
    counters.insert_seconds.observe(0.3)
    write_stats(
        tmp_path,
        0,
        {
            "acked_records.traces": 5,
            "received_bytes.logs": 7,
            "refused_requests.http_413": 1,
            "rejected_records.traces.too_old": 3,
            "from_the_future.x": 1,
        },
    )
    write_stats(tmp_path, 1, {"acked_records.traces": 6})
    for state in ("traces/1-a.pb", "traces/2-b.open", f"{FOLDER}/traces/3-c.pb"):
        path = tmp_path / "spool" / state
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)
    return Health(Settings(data_dir=tmp_path), Nothing(), Nothing(), counters)


def test_metrics_can_be_parsed_and_say_what_is(health):
    """Types, help, labels and values, by a strict reader."""
    kinds, values = parse(health.prometheus())
    assert kinds["axonize_writer_insert_seconds"] == "histogram"
    acked = {
        labels: value for (name, labels), value in values.items() if name == "axonize_receiver_acked_records_total"
    }
    signal = ("signal", "traces")
    assert acked == {(("worker", "0"), signal): 5, (("worker", "1"), signal): 6}
    rejected = (("worker", "0"), signal, ("reason", "too_old"))
    assert values["axonize_receiver_rejected_records_total", rejected] == 3
    assert values["axonize_writer_refused_segments_total", (("cause", "version"),)] == 1
    for state in ("open", "sealed", "refused"):
        assert values["axonize_spool_bytes", (("state", state),)] == 10
    assert values["axonize_writer_failing", ()] == 0
    assert not any("future" in name for name, _ in values)


def test_every_metric_is_a_sentence_and_counters_end_in_total():
    """Names by Prometheus' own rules."""
    for name, (kind, text) in METRICS.items():
        assert text.endswith(".")
        assert name.endswith("_total") == (kind == "counter")


def test_a_histogram_counts_cumulatively():
    """A value on a bound is in its bucket; one beyond all is in +Inf alone."""
    histogram = Histogram(0.1, 1.0)
    for value in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(value)
    samples = {(sample.suffix, sample.labels.get("le")): sample.value for sample in histogram.samples("h")}
    assert samples == {
        ("_bucket", "0.1"): 2,
        ("_bucket", "1"): 3,
        ("_bucket", "+Inf"): 4,
        ("_sum", None): pytest.approx(7.65),
        ("_count", None): 4,
    }


def test_label_values_are_escaped():
    """Quotes, backslashes and line ends in a value stay inside it."""
    ugly = 'a"b\\c\nd'
    _, values = parse(exposition([Sample("axonize_writer_refused_segments_total", 1, {"cause": ugly})]))
    (((_, ((_, value),)), _),) = values.items()
    assert re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), value) == ugly


def test_alert_rules_ask_for_what_there_is(health):
    """Every metric and label value an alert names exists; each alert is described in the operations guide."""
    _, values = parse(health.prometheus())
    names = {name for name, _ in values} | set(METRICS)
    guide = (ALERTS.parents[2] / "docs" / "operations.md").read_text()
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    for rule in group["rules"]:
        asked = set(re.findall(r"\baxonize_\w+", rule["expr"]))
        assert asked <= names, rule["alert"]
        assert asked or "up{" in rule["expr"]
        assert rule["annotations"]["summary"]
        assert f"`{rule['alert']}`" in guide, rule["alert"]
        for label in re.findall(r'state="(\w+)"', rule["expr"]):
            assert any(("state", label) in labels for _, labels in values)
