"""One signal's way out: a backlog and the thread that sends it, oldest first, one batch at a time."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from axonize_core.export.answer import Answer, Backoff

if TYPE_CHECKING:
    from axonize_core.export.answer import Sender
    from axonize_core.export.backlog import Backlog
    from axonize_core.export.batch import Batch
    from axonize_core.export.endpoint import Endpoint

__all__ = ["Lane"]

logger = logging.getLogger(__name__)


class Lane:
    """Retries what may be retried for as long as it takes, drops what the collector refuses for good, counts both."""

    def __init__(self, endpoint: Endpoint, backlog: Backlog, sender: Sender, backoff: Backoff | None = None) -> None:
        self.endpoint = endpoint
        self.backlog = backlog
        self.sent = 0
        self.sent_batches = 0
        self.retries = 0
        self.refused: Counter[str] = Counter()
        self.last_error = ""
        self._failing = False
        self._said: set[str] = set()
        self._sender = sender
        self._backoff = backoff or Backoff()
        self._next_try = 0.0
        self._deadline = float("inf")
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"axonize-{endpoint.signal}", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def put(self, batch: Batch) -> None:
        """Take a batch; never blocks on the network, never raises."""
        self.backlog.append(batch)
        self._wake.set()

    def stop(self, deadline: float) -> bool:
        """Send until ``deadline`` (monotonic) or the first failure, then let go of the files; False if it hangs."""
        self._deadline = deadline
        self._stopping.set()
        self._wake.set()
        self._thread.join(max(0.0, deadline - time.monotonic()) + 0.1)
        return not self._thread.is_alive()

    def facts(self) -> dict[str, Any]:
        """Return what ``axonize doctor`` shows."""
        return {
            "endpoint": self.endpoint.shown_url,
            "protocol": self.endpoint.protocol,
            "sent": self.sent,
            "sent_batches": self.sent_batches,
            "retries": self.retries,
            "refused": {reason: count for reason, count in list(self.refused.items()) if count},
            "failing": self._failing,
            "last_error": self.last_error,
            "next_try_s": max(0.0, self._next_try - time.monotonic()),
            **self.backlog.facts(),
        }

    def _run(self) -> None:
        try:
            while self._goes_on():
                pass
        finally:
            kept = self.backlog.close()
            self._sender.close()
            if kept:
                directory = self.backlog.facts()["directory"]
                logger.warning("%d %s stay in %s for the next agent", kept, self.endpoint.items, directory)

    def _goes_on(self) -> bool:
        """Send one batch; an error of ours is shown like the collector's, and must not end the export."""
        try:
            return self._send_next()
        except Exception as e:  # the queue's files are somebody else's too
            logger.exception("sending failed")
            answer = Answer(settled=False, reason=type(e).__name__, detail=str(e)[:300])
            self._failed(answer)
            self._pause(answer)
            return not self._stopping.is_set()

    def _send_next(self) -> bool:
        """Send one batch, or wait for one; False when this is the end."""
        stopping = self._stopping.is_set()
        batch = self.backlog.head()
        if batch is None:
            return not stopping and self._idle()
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            return False
        answer = self._send(batch, min(self.endpoint.timeout_s, left_s))
        if answer.settled:
            self._settle(batch, answer)
            return True
        self._failed(answer)
        if stopping:
            return False
        self._pause(answer)
        return True

    def _idle(self) -> bool:
        self._wake.wait()
        self._wake.clear()
        return True

    def _pause(self, answer: Answer) -> None:
        wait_s = self._backoff.wait_s(answer.wait_s)
        self._next_try = time.monotonic() + wait_s
        self._stopping.wait(wait_s)

    def _send(self, batch: Batch, timeout_s: float) -> Answer:
        try:
            return self._sender.send(batch, timeout_s)
        except Exception as e:  # noqa: BLE001 - no answer of any kind: the batch stays
            root = _root(e)
            return Answer(settled=False, reason=type(root).__name__, detail=str(root)[:300])

    def _settle(self, batch: Batch, answer: Answer) -> None:
        self.backlog.settle(batch)
        self._backoff.reset()
        self._next_try = 0.0
        self._failing = False
        self.sent += max(0, batch.items - answer.refused)
        self.sent_batches += not answer.refused
        if answer.reason:
            self.refused[answer.reason] += answer.refused
            self._remember(answer, f"the collector refused {answer.refused} {self.endpoint.items} for good")

    def _failed(self, answer: Answer) -> None:
        self.retries += 1
        self._failing = True
        self._remember(answer, f"{self.endpoint.items} wait, {self.endpoint.shown_url} does not take them")

    def _remember(self, answer: Answer, what: str) -> None:
        self.last_error = f"{answer.reason}: {answer.detail}" if answer.detail else answer.reason
        if answer.reason not in self._said:
            self._said.add(answer.reason)
            logger.warning("%s: %s (said once)", what, self.last_error)


def _root(error: BaseException) -> BaseException:
    """Return what an error began with: the operating system's words instead of three libraries' around them."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error
