"""What OTel clients log comes back equal: every field of a record, every kind of body."""

from __future__ import annotations

import secrets
import time

import pytest
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.resources import Resource

from axonize_server.otlp import validate_logs
from axonize_server.otlp_rules import Window
from oracle import same, walk_logs
from otlp_values import EVERYTHING, pairs_of, value_of
from stored_logs import logs_of


def everything():
    """A request that uses every field of OTLP logs, with every kind of value as attribute and as body."""
    now = time.time_ns()
    request = ExportLogsServiceRequest()
    resource_logs = request.resource_logs.add(schema_url="https://example.com/schema/1")
    resource_logs.resource.attributes.extend(pairs_of({**EVERYTHING, "service.name": "one"}))
    resource_logs.resource.dropped_attributes_count = 3
    scope_logs = resource_logs.scope_logs.add(schema_url="https://example.com/scope")
    scope_logs.scope.name, scope_logs.scope.version = "scope", "1.2"
    scope_logs.scope.attributes.extend(pairs_of(EVERYTHING))
    scope_logs.scope.dropped_attributes_count = 4
    for number, value in enumerate(EVERYTHING.values()):
        record = scope_logs.log_records.add(
            time_unix_nano=now + number,
            observed_time_unix_nano=now + 5 if number % 2 else 0,
            severity_number=number % 25,
            severity_text="wärn",
            event_name=f"event {number}",
            dropped_attributes_count=2**32 - 1,
            flags=0xFFFF_FFFF,
            trace_id=secrets.token_bytes(16) if number % 3 else b"",
            span_id=secrets.token_bytes(8) if number % 3 == 1 else b"",
        )
        record.body.CopyFrom(value_of(value))
        record.attributes.extend(pairs_of(EVERYTHING if number == 1 else {}))
    request.resource_logs.add().scope_logs.add().log_records.add(time_unix_nano=now + 1000)
    request.resource_logs.add().scope_logs.add().log_records.add(observed_time_unix_nano=now + 2000)
    return request


def assert_same(store, request):
    expected, found = walk_logs(request), logs_of(store)
    assert len(found) == len(expected) > 0
    for record, stored in zip(expected, found, strict=True):
        for field, value in record.items():
            assert same(stored[field], value), (field, stored[field], value)


@pytest.mark.parametrize("where", ["store", "http_store"])
def test_every_field_and_kind_of_body(where, request, write_segment):
    """A record that uses all OTLP has to offer comes back equal to the oracle's walk, as validation passed it on."""
    store, sent = request.getfixturevalue(where), everything()
    segment = write_segment(
        bytes(validate_logs(sent.SerializeToString(), Window.around(time.time_ns(), 7)).body), signal="logs"
    )
    store.insert(segment.path, segment.signal, segment.id)
    assert_same(store, sent)


def test_records_of_the_official_sdk(store, write_segment):
    """Records made by the OTel SDK and encoded by its exporter come back equal, exceptions included."""
    memory = InMemoryLogRecordExporter()
    provider = LoggerProvider(resource=Resource({"service.name": "sdk"}))
    provider.add_log_record_processor(SimpleLogRecordProcessor(memory))
    logger, now = provider.get_logger("tests", "1.0"), time.time_ns()
    logger.emit(
        LogRecord(
            timestamp=now,
            severity_text="WARN",
            severity_number=SeverityNumber.WARN,
            body="loaded the model",
            attributes={"tokens": 7, "list": ["a", 1.5]},
        )
    )
    error = LogRecord(timestamp=now + 1, severity_number=SeverityNumber.ERROR, body={"why": [None, "broke"]})
    error.exception = ValueError("broke")
    logger.emit(error)
    request = encode_logs(memory.get_finished_logs())
    request = ExportLogsServiceRequest.FromString(request.SerializeToString())
    segment = write_segment(request, signal="logs")
    store.insert(segment.path, segment.signal, segment.id)
    assert_same(store, request)
    (found,) = store.query(
        f"SELECT service, severity_text, body FROM {store.database}.logs WHERE hasToken(body, 'model')"
    )
    assert found == {"service": "sdk", "severity_text": "WARN", "body": "loaded the model"}


def test_a_record_without_any_time_is_seen_now():
    """OTLP leaves both times optional; who receives such a record says when that was."""
    request = ExportLogsServiceRequest()
    request.resource_logs.add().scope_logs.add().log_records.add(severity_text="x")
    window = Window.around(time.time_ns(), 7)
    accepted = validate_logs(request.SerializeToString(), window)
    (record,) = walk_logs(ExportLogsServiceRequest.FromString(accepted.body))
    assert record["observed_time_unix_nano"] == window.now_ns
    assert record["time_unix_nano"] == 0
    assert record["observed_time_unix_nano"] // (86_400 * 10**9) in accepted.days
