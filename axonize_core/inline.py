"""The agent inside the inference process (``AXONIZE_AGENT=inline``): for tests and notebooks, not for serving."""

from __future__ import annotations

from typing import TYPE_CHECKING

from axonize_core.frames import Bye, FrameDecoder, Records
from axonize_core.pipeline import Pipeline
from axonize_core.transport import hello

if TYPE_CHECKING:
    from axonize_core.recorder import Recorder
    from axonize_core.settings import Settings

__all__ = ["InlineTransport"]

CLOSE_TIMEOUT_S = 5.0


class InlineTransport:
    """A pipeline on the shipper's own thread."""

    generation = 1

    def __init__(self, recorder: Recorder, settings: Settings, pipeline: Pipeline | None = None) -> None:
        self._pipeline = pipeline or Pipeline(settings)
        self._timeline = self._pipeline.connect(hello(recorder, settings))
        self._decoder = FrameDecoder()
        self._said_goodbye = False

    def ready(self) -> bool:
        """There is always room."""
        return True

    def takes_now(self) -> bool:
        """An engine's thread is no place for an agent's work."""
        return False

    def write(self, frame: bytes, records: int) -> None:  # noqa: ARG002 - none can be lost on the way
        """Take the frame through the same bytes as over a socket."""
        for message in self._decoder.feed(frame):
            if isinstance(message, Records):
                self._pipeline.feed(self._timeline, message)
                self._pipeline.dispatch()
            elif isinstance(message, Bye):
                self._said_goodbye = True

    def drained(self, timeout_s: float) -> bool:  # noqa: ARG002 - nothing waits
        """Nothing ever waits here."""
        return True

    def forget(self) -> None:
        """Leave the parent's pipeline alone."""

    def close(self) -> None:
        """End the pipeline."""
        self._pipeline.disconnect(self._timeline, None if self._said_goodbye else "engine_lost")
        self._pipeline.close(CLOSE_TIMEOUT_S)
