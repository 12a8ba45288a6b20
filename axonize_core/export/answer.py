"""What became of a batch that was sent, and what to do next; https://opentelemetry.io/docs/specs/otlp/ (1.11)."""

from __future__ import annotations

import random
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from axonize_core.export.batch import Batch

__all__ = ["Answer", "Backoff", "Sender", "retry_after_s"]

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 10.0
LONGEST_ASKED_S = 3600.0


class Answer(NamedTuple):
    """``settled`` when the batch is the collector's, or was refused for good (``refused`` items, with a reason)."""

    settled: bool
    refused: int = 0
    reason: str = ""
    detail: str = ""
    wait_s: float | None = None


class Sender(Protocol):
    """Sends one batch at a time, on the lane's thread."""

    def send(self, batch: Batch, timeout_s: float) -> Answer:
        """Send and wait for the answer; an exception means: try again later."""

    def close(self) -> None:
        """Let go of connections."""


class Backoff:
    """Times between attempts: exponential with full jitter, never shorter than what the collector asked for."""

    def __init__(self, uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._uniform = uniform
        self._failures = 0

    def reset(self) -> None:
        """The last attempt succeeded."""
        self._failures = 0

    def wait_s(self, asked_s: float | None) -> float:
        """Return how long to wait after another failure."""
        longest = min(FIRST_WAIT_S * 2 ** min(self._failures, 16), LONGEST_WAIT_S)
        self._failures += 1
        jittered = self._uniform(0, longest)
        return jittered if asked_s is None else min(asked_s, LONGEST_ASKED_S) + jittered


def retry_after_s(value: str | None, now_s: Callable[[], float] = time.time) -> float | None:
    """Read a Retry-After header, seconds or a date (RFC 9110 §10.2.3); None when there is none."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now_s())
    except (TypeError, ValueError):
        return None
