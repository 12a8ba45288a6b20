"""Frames in, hooks out: what an agent does, without its sockets."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from axonize_core import __version__
from axonize_core.answers import Answers
from axonize_core.device_times import DeviceTimes
from axonize_core.frames import count_events
from axonize_core.gpu.sampler import Sampler
from axonize_core.plugins import AgentContext, load_plugins
from axonize_core.timeline import Events, Timeline

if TYPE_CHECKING:
    from collections.abc import Callable

    from axonize_core.events import SourceInfo
    from axonize_core.frames import Hello, Records
    from axonize_core.plugins import Plugins
    from axonize_core.settings import Settings
    from axonize_core.timeline import IdSource

__all__ = ["Pipeline"]

MOST_TICK_S = 0.25


class _Attention:
    """Seconds in which this agent listened.

    What one process says waits for what another says of the same thing, only so long. While hooks were busy, or the
    machine was, nobody read what came in, and that time does not count.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._now, self._last = 0.0, clock()

    def __call__(self) -> float:
        return self._now

    def tick(self) -> None:
        """Go on; between two dispatches there are 0.1 s, as long as nothing is in the way."""
        last, self._last = self._last, self._clock()
        self._now += min(self._last - last, MOST_TICK_S)


class Pipeline:
    """Timelines of all connected processes and the plugins that hear of their events. One thread.

    ``first_s`` is how long after its start it waits for processes that nobody spoke of yet.
    """

    def __init__(
        self,
        settings: Settings,
        plugins: Plugins | None = None,
        ids: IdSource | None = None,
        clock: Callable[[], float] = time.monotonic,
        first_s: float = 0.0,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._plugins = plugins or load_plugins(settings.load_plugins)
        self._ids = ids or RandomIdGenerator()
        self._attention = _Attention(clock)
        self._answers = Answers(self._ids, self._attention, first_s)
        self._device_times = DeviceTimes(self._attention)
        self._timelines: list[Timeline] = []
        self._pending = Events()
        self._sampler = Sampler(None, settings.gpu_interval_ms / 1000)
        context = AgentContext(settings, self._plugins, self._sampler)
        providers = self._plugins.call("axonize_gpu_provider", firstresult=True, context=context)
        self._sampler.provider = providers[0] if providers else None
        self._plugins.configure(context)
        self._sampler.start(
            lambda samples: self._plugins.call("axonize_gpu_samples", samples=samples),
            lambda infos: self._plugins.call("axonize_gpu_infos", infos=infos),
        )

    def connect(self, hello: Hello) -> Timeline:
        """Open the timeline of one process."""
        timeline = Timeline(hello, self._ids)
        self._timelines.append(timeline)
        self.counts["processes"] += 1
        return timeline

    def feed(self, timeline: Timeline, frame: Records) -> None:
        """Take one frame; its events wait for ``dispatch``."""
        self.counts["frames"] += 1
        self.counts["records"] += count_events(frame.records)
        events = timeline.feed(frame)
        if frame.sources:
            self._answers.meet(timeline.sources())
        self._collect(events)
        if frame.sources:
            self._sampler.contexts.appear(timeline.sources())

    def disconnect(self, timeline: Timeline, error: str | None) -> None:
        """End what a process left open; ``error`` says why it went, None when it said goodbye."""
        self._collect(timeline.close(error))
        self._timelines.remove(timeline)
        self._answers.gone(timeline.instance_id)
        self._sampler.contexts.go(timeline.sources())
        self.counts["records_dropped"] += timeline.dropped_total
        self.counts["engines_lost"] += error is not None
        self.counts["records_unknown"] += timeline.unknown_records
        self.counts["records_orphaned"] += timeline.orphan_records

    def dispatch(self) -> None:
        """Hand the waiting events to the plugins, one call per kind."""
        self._attention.tick()
        self._pending.requests += self._answers.due()
        self._pending.batches += self._device_times.due()
        self._dispatch()

    def _dispatch(self) -> None:
        events, self._pending = self._pending, Events()
        for hook, found in (
            ("axonize_prefills", events.prefills),
            ("axonize_decodes", events.decodes),
            ("axonize_batches", events.batches),
            ("axonize_requests", events.requests),
        ):
            if found:
                self.counts[f"{hook.removeprefix('axonize_')}"] += len(found)
                self._plugins.call(hook, events=found)

    def close(self, timeout_s: float) -> None:
        """End everything that is open and let the plugins hand over what they hold."""
        for timeline in list(self._timelines):
            self.disconnect(timeline, "agent_stopped")
        self._pending.requests += self._answers.due(closing=True)
        self._pending.batches += self._device_times.due(closing=True)
        self._dispatch()
        self._sampler.stop()
        self._plugins.call("axonize_shutdown", timeout_s=timeout_s)

    def facts(self) -> dict[str, Any]:
        """Return what ``axonize doctor`` shows of this agent."""
        live = self._timelines
        errors: Counter[str] = Counter()
        for timeline in live:
            errors.update(timeline.errors)
        return {
            "version": __version__,
            "processes_live": len(live),
            "requests_live": sum(t.live_requests() for t in live),
            "counts": {
                **self.counts,
                **self._answers.counts,
                "records_dropped": self.counts["records_dropped"] + sum(t.dropped_total for t in live),
                "records_unknown": self.counts["records_unknown"] + sum(t.unknown_records for t in live),
                "records_orphaned": self.counts["records_orphaned"] + sum(t.orphan_records for t in live),
            },
            "process_errors": dict(errors),
            "engines": [
                _engine(source) for t in live for source in t.sources() if "ai.capabilities" in source.resource
            ],
            "gpu_provider": self._sampler.provider.provenance if self._sampler.provider else "unavailable",
            "gpu_failures": dict(self._sampler.failures),
            "gpu": self._sampler.facts(),
            **self._plugins.facts(),
        }

    def _collect(self, events: Events) -> None:
        self._answers.hear(events.answers)
        self._pending.requests += self._answers.join(events.requests)
        self._pending.prefills += events.prefills
        self._pending.decodes += events.decodes
        self._device_times.hear(events.device_times)
        self._pending.batches += self._device_times.join(events.batches)


def _engine(source: SourceInfo) -> dict[str, Any]:
    """Return what doctor says of an engine that is recorded by several of its parts."""
    told = ("ai.engine.id", "ai.engine.version", "ai.capabilities")
    return {"engine": source.engine, "model": source.model, **{key: source.resource.get(key, "") for key in told}}
