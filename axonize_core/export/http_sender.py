"""Batches over OTLP/HTTP, on one kept connection. Proxies and CA bundles are requests' business, as everywhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import requests
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from axonize_core import __version__
from axonize_core.export.answer import Answer, retry_after_s

if TYPE_CHECKING:
    from axonize_core.export.batch import Batch
    from axonize_core.export.endpoint import Endpoint

__all__ = ["RESPONSES", "HttpSender", "partial"]

RESPONSES: dict[str, type[Any]] = {"traces": ExportTraceServiceResponse, "metrics": ExportMetricsServiceResponse}
_ACCEPTED = range(200, 300)
_RETRYABLE = {429, 502, 503, 504}
_ANSWER_BYTES = 64 * 1024
_HEADERS = {"Content-Type": "application/x-protobuf", "User-Agent": f"axonize/{__version__}"}


class HttpSender:
    """One session for one endpoint."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._session = requests.Session()
        self._session.headers.update({**_HEADERS, **endpoint.headers})
        self._certificates = (endpoint.client_certificate, endpoint.client_key)
        self._response = RESPONSES[endpoint.signal]

    def send(self, batch: Batch, timeout_s: float) -> Answer:
        """Post one body.

        Raises:
            requests.RequestException: no answer.
        """
        own, key = self._certificates
        with self._session.post(
            self._endpoint.url,
            data=batch.body,
            headers={"Content-Encoding": "gzip"} if batch.gzipped else {},
            timeout=timeout_s,
            verify=self._endpoint.certificate or None,
            cert=(own, key) if own and key else own or None,
            allow_redirects=False,  # a redirected POST would arrive as GET, without its body
            stream=True,
        ) as response:
            body = response.raw.read(_ANSWER_BYTES, decode_content=True)
        return self._judge(response, body, batch)

    def close(self) -> None:
        """Close the connection."""
        self._session.close()

    def _judge(self, response: requests.Response, body: bytes, batch: Batch) -> Answer:
        status = response.status_code
        reason = f"HTTP {status}"
        if status in _ACCEPTED:
            return partial(self._parse(body))
        detail = response.headers.get("Location", "") or _text(body)
        if status in _RETRYABLE:
            wait_s = retry_after_s(response.headers.get("Retry-After"))
            return Answer(settled=False, reason=reason, detail=detail, wait_s=wait_s)
        return Answer(settled=True, refused=batch.items, reason=reason, detail=detail)

    def _parse(self, body: bytes) -> Any:
        try:
            return self._response.FromString(body)
        except DecodeError:
            return self._response()  # not OTLP's answer, but accepted


def partial(response: Any) -> Answer:
    """Return what an accepting answer (Export…ServiceResponse) says of items that were rejected all the same."""
    said = response.partial_success
    count = getattr(said, "rejected_spans", 0) or getattr(said, "rejected_data_points", 0)
    if count or said.error_message:
        return Answer(settled=True, refused=count, reason="partial success", detail=said.error_message)
    return Answer(settled=True)


def _text(body: bytes) -> str:
    """Return the readable part of a Status message, JSON or HTML."""
    return re.sub(r"[^\x20-\x7e]+", " ", body[:300].decode("utf-8", "replace")).strip()
