"""What we test with, and what plugin authors can test with: captured events, a clock and ids that count."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from axonize_core.gpu.simulated import SimulatedProvider
from axonize_core.hookspecs import hookimpl
from axonize_core.inline import InlineTransport
from axonize_core.pipeline import Pipeline
from axonize_core.plugins import Plugins
from axonize_core.recorder import get_recorder
from axonize_core.settings import Settings
from axonize_core.shipper import Shipper

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from axonize_core.events import BatchEvent, DecodeEvent, PrefillEvent, RequestEvent
    from axonize_core.recorder import Recorder

__all__ = ["CapturedEvents", "CountingIds", "FakeClock", "capture_events"]


class FakeClock:
    """A clock in nanoseconds that moves only when told to."""

    def __init__(self, now_ns: int = 1_000_000_000) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        """Return the time."""
        return self.now_ns

    def advance(self, duration_ns: int) -> int:
        """Move on and return the new time."""
        self.now_ns += duration_ns
        return self.now_ns


class CountingIds:
    """Makes trace ids 1, 2, 3 and span ids 1, 2, 3."""

    def __init__(self) -> None:
        self._traces = 0
        self._spans = 0

    def generate_trace_id(self) -> int:
        """Return the next trace id."""
        self._traces += 1
        return self._traces

    def generate_span_id(self) -> int:
        """Return the next span id."""
        self._spans += 1
        return self._spans


class CapturedEvents:
    """A plugin that keeps everything it hears of, in order."""

    def __init__(self) -> None:
        self.requests: list[RequestEvent] = []
        self.prefills: list[PrefillEvent] = []
        self.decodes: list[DecodeEvent] = []
        self.batches: list[BatchEvent] = []
        self.spans: list[ReadableSpan] = []
        self._recorder: Recorder | None = None

    def flush(self, timeout_s: float = 5.0) -> CapturedEvents:
        """Wait until everything recorded so far is here."""
        if self._recorder is not None:
            self._recorder.flush(timeout_s)
        return self

    @hookimpl
    def axonize_requests(self, events: Sequence[RequestEvent]) -> None:
        """Keep requests."""
        self.requests += events

    @hookimpl
    def axonize_prefills(self, events: Sequence[PrefillEvent]) -> None:
        """Keep prefills."""
        self.prefills += events

    @hookimpl
    def axonize_decodes(self, events: Sequence[DecodeEvent]) -> None:
        """Keep decodes."""
        self.decodes += events

    @hookimpl
    def axonize_batches(self, events: Sequence[BatchEvent]) -> None:
        """Keep batches."""
        self.batches += events

    @hookimpl
    def axonize_spans(self, spans: Sequence[ReadableSpan]) -> None:
        """Keep spans."""
        self.spans += spans


class _Simulated:
    @hookimpl
    def axonize_gpu_provider(self, context: Any) -> SimulatedProvider:  # noqa: ARG002 - always the same
        return SimulatedProvider()


@contextmanager
def capture_events(*more: object) -> Iterator[CapturedEvents]:
    """Send what this process records to a plugin that keeps it, through an inline agent; flushed on exit.

    Spans are annotated with the simulated device. Afterwards the recorder does what it did before.

    Args:
        more: plugins under test; they take part as installed ones do, and what they do wrong is raised at the end.

    Raises:
        AssertionError: one of these failed or was refused.
    """
    import axonize_core.spans  # noqa: PLC0415 - the plugin module itself is what gets registered

    captured, plugins, recorder = CapturedEvents(), Plugins(), get_recorder()
    for plugin in (axonize_core.spans, captured, _Simulated(), *more):
        plugins.register(plugin)
    settings = Settings.from_env()
    pipeline = Pipeline(settings, plugins, CountingIds())

    def make_shipper(recorder: Recorder) -> Shipper:
        return Shipper(recorder, InlineTransport(recorder, settings, pipeline))

    before = recorder.redirect(make_shipper)
    captured._recorder = recorder  # noqa: SLF001 - same module
    try:
        yield captured
    finally:
        recorder.redirect(before, timeout_s=5.0)
    if plugins.failures or plugins.disabled:
        raise AssertionError("; ".join(f"{r.name} {r.reason}" for r in plugins.records.values() if r.reason))
