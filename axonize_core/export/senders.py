"""The sender for an endpoint, or one that says why there is none."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from axonize_core.export.answer import Answer
from axonize_core.export.endpoint import GRPC
from axonize_core.export.http_sender import HttpSender

if TYPE_CHECKING:
    from axonize_core.export.answer import Sender
    from axonize_core.export.batch import Batch
    from axonize_core.export.endpoint import Endpoint

__all__ = ["GRPC_MISSING", "make_sender"]

GRPC_MISSING = "OTLP over gRPC needs an extra: pip install 'axonize[grpc]'; until then everything waits in the queue"
logger = logging.getLogger(__name__)


class _Unavailable:
    """Stands in where no sender can be made: batches wait, and the reason is seen in ``axonize doctor``."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def send(self, batch: Batch, timeout_s: float) -> Answer:  # noqa: ARG002 - nothing is sent
        return Answer(settled=False, reason=self._reason)

    def close(self) -> None:
        """There is nothing to let go of."""


def make_sender(endpoint: Endpoint) -> Sender:
    """Return the sender of the endpoint's protocol; never raises."""
    for problem in endpoint.problems:
        logger.warning("%s: %s", endpoint.signal, problem)
    if endpoint.protocol != GRPC:
        return HttpSender(endpoint)
    try:
        from axonize_core.export.grpc_sender import GrpcSender  # noqa: PLC0415 - an extra
    except ImportError:
        return _Unavailable(GRPC_MISSING)
    try:
        return GrpcSender(endpoint)
    except OSError as e:
        return _Unavailable(f"a certificate cannot be read: {e}")
