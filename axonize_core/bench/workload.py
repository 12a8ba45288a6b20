"""What is measured with: work of a host framework, whose integration knows it, or a synthetic step."""

from __future__ import annotations

import hashlib
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol

from axonize_core.errors import ConfigurationError
from axonize_core.frames import Kind
from axonize_core.recorder import get_recorder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Synthetic", "Workload", "find_workload"]


class Workload(Protocol):
    """The same work again and again, with recording on or off.

    An integration offers one as ``workload(model)`` in its module of the entry point group ``axonize.integrations``.
    """

    description: str
    device: str
    versions: Mapping[str, str]

    def switch(self, *, on: bool) -> None:
        """Instrument, or take the instrumentation away."""

    def run(self) -> int:
        """Serve one batch and return its new tokens, each time as many."""


def find_workload(engine: str | None, model: str | None) -> Workload:
    """Return the workload of the asked integration, else of the first whose framework is installed, else a step.

    Raises:
        ConfigurationError: the integration does not exist, or a model was named and there is none to run it.
    """
    offers = _offers()
    if engine == "synthetic" or (engine is None and model is None and not offers):
        return Synthetic()
    if engine is not None and engine not in offers:
        raise ConfigurationError(f"nothing to measure {engine!r} with; there is {', '.join([*offers, 'synthetic'])}")
    if not offers:
        raise ConfigurationError(f"no integration's framework is installed to run {model!r}: pip install transformers")
    return offers[engine or next(iter(offers))](model)


def _offers() -> dict[str, Callable[[str | None], Workload]]:
    found = {}
    for entry in metadata.entry_points(group="axonize.integrations"):
        integration: Any = entry.load()
        if hasattr(integration, "workload") and _is_installed(integration.ENGINE):
            found[entry.name] = integration.workload
    return found


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


class Synthetic:
    """A batch of 4 requests over 32 steps of about 1 ms of hashing each, recorded as an engine would."""

    description = "synthetic: 4 requests × 32 steps of about 1 ms"
    device = "cpu"
    versions: Mapping[str, str] = {}

    _BATCH, _STEPS, _BLOCK_BYTES = 4, 32, 1_500_000

    def __init__(self) -> None:
        self._on = False
        self._block = bytes(self._BLOCK_BYTES)
        self._source = get_recorder().source("synthetic", "bench", "synthetic", "axonize", ("cpu", 0, None))

    def switch(self, *, on: bool) -> None:
        """Record, or do not."""
        self._on = on

    def run(self) -> int:
        """Run one batch."""
        (self._recorded if self._on else self._plain)()
        return self._BATCH * self._STEPS

    def _plain(self) -> None:
        for _ in range(self._STEPS):
            hashlib.sha256(self._block).digest()

    def _recorded(self) -> None:
        recorder, times = get_recorder(), list[int]()
        requests = tuple(recorder.next_handle() for _ in range(self._BATCH))
        run = recorder.next_handle()
        for request in requests:
            arrived = (self._source, recorder.clock(), None, None, "text_completion", 8, None)
            recorder.emit(Kind.REQUEST, request, arrived)
        recorder.emit(Kind.RUN, run, (self._source, requests, (8,) * self._BATCH, "generate", times))
        for _ in range(self._STEPS):
            times.append(recorder.clock())
            hashlib.sha256(self._block).digest()
        times.append(-recorder.clock())
        recorder.emit(Kind.RUN_END, run, (self._STEPS, None))
        for request in requests:
            recorder.emit(Kind.REQUEST_END, request, ("length", 8, self._STEPS, None, None))
