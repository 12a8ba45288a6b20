"""What the collector measures of itself, and how Prometheus reads it: each metric once, with its help and type.

Text format 0.0.4, https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import threading
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["METRICS", "Histogram", "Sample", "exposition"]

METRICS: Final[dict[str, tuple[str, str]]] = {
    "axonize_receiver_received_bytes_total": ("counter", "Bytes of valid requests once inflated, by signal."),
    "axonize_receiver_acked_requests_total": ("counter", "Requests acknowledged, by signal."),
    "axonize_receiver_acked_records_total": ("counter", "Spans, data points and log records acknowledged, by signal."),
    "axonize_receiver_refused_requests_total": ("counter", "Requests not taken, by reason; the sender was told."),
    "axonize_receiver_rejected_records_total": (
        "counter",
        "Records left out of acknowledged requests, by signal and reason; the sender was told.",
    ),
    "axonize_spool_segments": (
        "gauge",
        "Segments by state: sealed ones wait for the store, refused ones for a person.",
    ),
    "axonize_spool_bytes": ("gauge", "Bytes of segments by state."),
    "axonize_spool_max_bytes": ("gauge", "Bytes the spool may hold; beyond, requests are refused."),
    "axonize_spool_oldest_age_seconds": ("gauge", "How long the oldest sealed segment waits."),
    "axonize_spool_too_old_segments": ("gauge", "Sealed segments that wait for longer than the settings allow."),
    "axonize_writer_stored_segments_total": ("counter", "Segments in the store."),
    "axonize_writer_stored_bytes_total": ("counter", "Bytes of segments in the store."),
    "axonize_writer_refused_segments_total": ("counter", "Segments and parts of segments set aside, by cause."),
    "axonize_writer_dropped_segments_total": ("counter", "Acknowledged segments deleted unstored, by cause."),
    "axonize_writer_dropped_bytes_total": ("counter", "Bytes of acknowledged segments deleted unstored, by cause."),
    "axonize_writer_insert_retries_total": ("counter", "Inserts that failed and were tried again."),
    "axonize_writer_repeated_inserts_total": (
        "counter",
        "Inserts whose rows a table had already and did not take twice; seen in the embedded store only.",
    ),
    "axonize_writer_partings_total": ("counter", "Refused segments in which the bad records were looked for."),
    "axonize_writer_failing": ("gauge", "1 while the newest attempt to store something failed."),
    "axonize_writer_insert_seconds": ("histogram", "Time of inserts that succeeded, one for each segment."),
    "axonize_registry_synced_things_total": ("counter", "GPUs, slices and contexts taken over into the registry."),
    "axonize_registry_failed_rounds_total": (
        "counter",
        "Rounds in which the registry could not be brought up to date.",
    ),
}


class Sample(NamedTuple):
    """One value; `suffix` is what a histogram's parts add to the name."""

    name: str
    value: float
    labels: Mapping[str, str] = {}
    suffix: str = ""


class Histogram:
    """Counts values by upper bounds; one thread observes, any reads."""

    def __init__(self, *bounds: float) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()

    def observe(self, value: float) -> None:
        """Count a value."""
        with self._lock:
            self._counts[sum(value > bound for bound in self._bounds)] += 1
            self._sum += value

    def samples(self, name: str) -> list[Sample]:
        """Give cumulative buckets, sum and count."""
        with self._lock:
            counts, total = list(accumulate(self._counts)), self._sum
        named = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        buckets = [Sample(name, n, {"le": le}, "_bucket") for le, n in zip(named, counts, strict=True)]
        return [*buckets, Sample(name, total, suffix="_sum"), Sample(name, counts[-1], suffix="_count")]


def exposition(samples: Iterable[Sample]) -> str:
    """Give the text of samples, those of one metric together, in the order the metrics stand in `METRICS`."""
    by_name: dict[str, list[Sample]] = {name: [] for name in METRICS}
    for sample in samples:
        by_name[sample.name].append(sample)
    return "".join(f"{line}\n" for name, found in by_name.items() if found for line in _lines(name, found))


def _lines(name: str, samples: list[Sample]) -> Iterator[str]:
    kind, text = METRICS[name]
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for sample in samples:
        labels = ",".join(f'{label}="{_escaped(value)}"' for label, value in sample.labels.items())
        yield f"{name}{sample.suffix}{'{' + labels + '}' if labels else ''} {sample.value:.17g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
