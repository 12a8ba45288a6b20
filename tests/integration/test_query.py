"""Questions and their HTTP routes, on spans as our agent sends them."""

from __future__ import annotations

import json
import threading
import time
from datetime import datetime, timedelta, timezone

import pytest
from starlette.testclient import TestClient

from axonize_core import attributes as names
from axonize_server.api import make_app
from axonize_server.health import Counters, Health
from axonize_server.query import batches, requests, trace
from axonize_server.registry.address import open_registry
from axonize_server.spool import INSERT_SETTINGS
from axonize_server.stats import receivers_alive, write_stats
from own_spans import OwnLoad, as_requests, own_span

TENANT = {"tenant": "default"}
REQUEST_FIELDS = [
    "trace_id",
    "span_id",
    "request_id",
    "request_seq",
    "instance_id",
    "service",
    "model",
    "engine",
    "operation",
    "start_time",
    "duration_ms",
    "queue_ms",
    "queue_provenance",
    "ttft_ms",
    "tpot_ms",
    "input_tokens",
    "output_tokens",
    "finish_reason",
    "status",
    "error_type",
    "incomplete",
    "compute_resource",
    "gpu_provenance",
]
SPAN_FIELDS = [
    "span_id",
    "parent_span_id",
    "name",
    "kind",
    "phase",
    "start_time",
    "duration_ms",
    "status",
    "status_message",
    "service",
    "scope",
    "attributes",
    "resource",
    "events",
    "links",
]
BATCH_FIELDS = [
    "trace_id",
    "span_id",
    "step_seq",
    "instance_id",
    "service",
    "engine",
    "model",
    "start_time",
    "duration_ms",
    "schedule_ms",
    "execute_ms",
    "update_ms",
    "device_ms",
    "size",
    "prefill_tokens",
    "decode_tokens",
    "running",
    "waiting",
    "kv_cache_usage",
    "compute_resource",
    "gpu_provenance",
    "members",
]
MEMBER_FIELDS = ["request_seq", "prefill_tokens", "decode_tokens", "context_tokens", "trace_id", "request_id"]


@pytest.fixture
def load(store, write_segment):
    """Twenty requests served a minute ago, and their steps, in the store."""
    made = OwnLoad(7, start_ns=time.time_ns() - 60 * 10**9, slots=4, mean_output=10)
    served, steps = made.run(20)
    segment = write_segment(*as_requests([*served, *steps], made.resource))
    store.insert(segment.path, segment.signal, segment.id, INSERT_SETTINGS)
    return made, served, steps


def value(span, name):
    return next((a.value for a in span.attributes if a.key == name), None)


def test_requests_newest_first(store, load):
    """Requests come back newest first with the values that were sent."""
    _, served, _ = load
    sent = {s.span_id.hex(): s for s in served if s.name == "request"}
    found = requests(store, **TENANT)
    assert [*found[0]] == REQUEST_FIELDS
    assert len(found) == len(sent) == 20
    starts = [sent[row["span_id"]].start_time_unix_nano for row in found]
    assert starts == sorted(starts, reverse=True)
    for row in found:
        span = sent[row["span_id"]]
        assert row["trace_id"] == span.trace_id.hex()
        assert row["request_id"] == value(span, names.REQUEST_ID).string_value
        assert row["request_seq"] == value(span, names.REQUEST_SEQ).int_value
        assert row["ttft_ms"] == pytest.approx(value(span, names.LATENCY_TTFT_S).double_value * 1000, abs=1e-4)
        assert row["duration_ms"] == (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        assert row["start_time"].endswith(f".{span.start_time_unix_nano % 10**9:09d}Z")
        assert (row["status"], row["incomplete"], row["error_type"]) == ("ok", False, None)
        assert row["finish_reason"] in ("stop", "length")
    assert found[:5] == requests(store, **TENANT, limit=5)


def test_requests_filters(store, load, write_segment):
    """Service, model, status and age narrow the list; another tenant sees nothing."""
    now = time.time_ns()
    failed = own_span("request", now, now + 10, {names.MODEL: "other", names.ERROR_TYPE: "ValueError"})
    failed.status.code = 2
    old = own_span("request", now - 7200 * 10**9, now, {names.MODEL: "other"})
    segment = write_segment(*as_requests([failed, old], {"service.name": "second"}))
    store.insert(segment.path, segment.signal, segment.id)
    assert len(requests(store, **TENANT, service="chat")) == 20
    assert [r["error_type"] for r in requests(store, **TENANT, status="error")] == ["ValueError"]
    assert len(requests(store, **TENANT, status="ok")) == 20
    assert len(requests(store, **TENANT, model="other")) == 1
    assert len(requests(store, **TENANT, model="other", since_s=3 * 3600)) == 2
    assert requests(store, tenant="acme") == []
    unknown = requests(store, **TENANT, service="second")[0]
    absent = "request_id request_seq instance_id engine operation queue_ms ttft_ms tpot_ms input_tokens output_tokens"
    assert {unknown[name] for name in (*absent.split(), "finish_reason", "compute_resource", "gpu_provenance")} == {
        None
    }


def test_a_filter_is_bound_and_never_sql(store, load):
    """What looks like SQL in a filter is a value like any other."""
    for text in ("' OR 1=1 --", "\\", "{tenant:String}", "%s", "é"):
        assert requests(store, **TENANT, service=text) == []
        assert batches(store, **TENANT, instance_id=text) == []


def test_a_trace_in_start_order(store, load):
    """A trace gives its four spans in start order, with kinds, phases, attributes and resource."""
    made, served, _ = load
    request = next(s for s in served if s.name == "request")
    found = trace(store, **TENANT, trace_id=request.trace_id.hex())
    assert found["trace_id"] == request.trace_id.hex()
    spans = found["spans"]
    assert [*spans[0]] == SPAN_FIELDS
    assert {s["name"] for s in spans} == {"request", "queue", "prefill", "decode"}
    assert [s["start_time"] for s in spans] == sorted(s["start_time"] for s in spans)
    root = next(s for s in spans if s["name"] == "request")
    assert (root["kind"], root["phase"], root["status"], root["parent_span_id"]) == ("server", "request", "ok", None)
    assert (root["service"], root["scope"], root["resource"]["service.instance.id"]) == (
        "chat",
        "axonize",
        made.resource["service.instance.id"],
    )
    assert root["attributes"][names.FINISH_REASONS] in (["stop"], ["length"])
    assert {s["parent_span_id"] for s in spans if s is not root} == {root["span_id"]}
    assert trace(store, **TENANT, trace_id="ab" * 16) is None
    assert trace(store, tenant="acme", trace_id=request.trace_id.hex()) is None


def test_steps_with_their_members(store, load):
    """Each step gives its members with their tokens, joined with the requests they are."""
    made, served, steps = load
    sent = {value(s, names.REQUEST_SEQ).int_value: s for s in served if s.name == "request"}
    found = batches(store, **TENANT, limit=1000)
    assert [*found[0]] == BATCH_FIELDS
    assert [*found[0]["members"][0]] == MEMBER_FIELDS
    assert [row["step_seq"] for row in found] == list(range(len(steps), 0, -1))
    assert sum(row["size"] for row in found) == sum(len(row["members"]) for row in found) == made.members
    for row in found:
        assert row["prefill_tokens"] == sum(m["prefill_tokens"] for m in row["members"])
        assert row["decode_tokens"] == sum(m["decode_tokens"] for m in row["members"])
        for member in row["members"]:
            request = sent[member["request_seq"]]
            assert member["trace_id"] == request.trace_id.hex()
            assert member["request_id"] == value(request, names.REQUEST_ID).string_value


def test_the_steps_a_request_was_in(store, load):
    """Asked for one request of one process, exactly its steps come."""
    made, served, _ = load
    instance = made.resource["service.instance.id"]
    decode = next(s for s in served if s.name == "decode")
    seq = value(decode, names.REQUEST_SEQ).int_value
    found = batches(store, **TENANT, instance_id=instance, request_seq=seq, limit=1000)
    assert len(found) == value(decode, names.OUTPUT_TOKENS).int_value
    assert batches(store, **TENANT, instance_id="another", request_seq=seq) == []


def test_members_are_unknown_until_their_request_is_stored(store, write_segment):
    """A step whose requests still run has members without ids; a step without members is no error."""
    now = time.time_ns()
    attributes = {names.MEMBER_REQUEST_SEQ: (7).to_bytes(8, "little"), names.BATCH_SEQ: 1}
    steps = [own_span("batch", now, now + 5, attributes), own_span("batch", now + 1, now + 6, {names.BATCH_SEQ: 2})]
    segment = write_segment(*as_requests(steps, {"service.instance.id": "i"}))
    store.insert(segment.path, segment.signal, segment.id)
    empty, one = batches(store, **TENANT)
    assert (empty["members"], empty["size"]) == ([], 0)
    assert one["size"] == 1
    assert one["members"] == [dict.fromkeys(MEMBER_FIELDS) | {"request_seq": 7}]


def test_what_a_step_says_of_its_time_and_its_engine(store, write_segment):
    """Schedule, execute, update and device time come back to the nanosecond; what a step does not say is null."""
    now = time.time_ns()
    said = {
        names.BATCH_SCHEDULE_MS: 0.031457,
        names.BATCH_EXECUTE_MS: 18.204001,
        names.BATCH_UPDATE_MS: 0.0,
        names.DEVICE_TIME_MS: 17.9,
        names.BATCH_RUNNING: 0,
        names.BATCH_WAITING: 12,
        names.BATCH_KV_CACHE_USAGE: 0.37251,
    }
    took_ns = 31_457 + 18_204_001
    steps = [own_span("batch", now, now + took_ns, said), own_span("batch", now + 1, now + 6, {})]
    segment = write_segment(*as_requests(steps, {}))
    store.insert(segment.path, segment.signal, segment.id)
    silent, told = batches(store, **TENANT)
    fields = ("schedule_ms", "execute_ms", "update_ms", "device_ms", "running", "waiting", "kv_cache_usage")
    assert [told[field] for field in fields] == [0.031457, 18.204001, 0.0, 17.9, 0, 12, 0.3725]
    assert [silent[field] for field in fields] == [None] * 7


@pytest.fixture
def client(store, settings):
    registry = open_registry(settings.registry)
    health = Health(settings, store, registry, Counters())
    with TestClient(make_app(store, registry, health, "default")) as client:
        yield client


def test_routes_answer_as_documented(client, load, settings):
    """The routes give what the functions give, filters and all."""
    _, served, _ = load
    found = client.get("/api/v1/requests", params={"limit": 3, "since": "1h", "service": "chat", "status": "ok"}).json()
    assert len(found["requests"]) == 3
    trace_id = found["requests"][0]["trace_id"]
    assert len(client.get(f"/api/v1/traces/{trace_id.upper()}").json()["spans"]) == 4
    steps = client.get("/api/v1/batches", params={"limit": 2, "since": "1d"}).json()["batches"]
    assert len(steps) == 2
    again = client.get(
        "/api/v1/batches",
        params={"instance_id": steps[0]["instance_id"], "request_seq": steps[0]["members"][0]["request_seq"]},
    )
    assert steps[0]["span_id"] in {b["span_id"] for b in again.json()["batches"]}
    health = client.get("/api/v1/health").json()
    assert health["status"] == "ok"
    assert health["store"]["rows"]["spans"] == len(served) + health["store"]["rows"]["batches"]
    assert health["spool"]["segments"] == 1
    assert client.get("/healthz").status_code == 200
    waiting = client.get("/readyz")
    assert (waiting.status_code, waiting.text) == (503, "0 of 1 receivers are up\n")
    write_stats(settings.data_dir, 0, {})
    assert client.get("/readyz").status_code == 200
    assert 'axonize_spool_segments{state="sealed"} 1\n' in client.get("/metrics").text


def test_values_json_has_no_word_for(client, store, write_segment):
    """Bytes and floats that are no number come as objects with one key; 64-bit integers stay exact."""
    now = time.time_ns()
    span = own_span("x", now, now, {"b": b"\x00\xff", "n": float("nan"), "i": float("-inf"), "big": 2**63 - 1})
    segment = write_segment(*as_requests([span], {}))
    store.insert(segment.path, segment.signal, segment.id)
    answer = client.get(f"/api/v1/traces/{span.trace_id.hex()}")
    attributes = json.loads(answer.text, parse_constant=pytest.fail)["spans"][0]["attributes"]
    assert attributes["b"] == {"$bytes": "AP8="}
    assert (attributes["n"], attributes["i"]) == ({"$double": "nan"}, {"$double": "-inf"})
    assert attributes["big"] == 2**63 - 1


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/v1/requests?limit=0", 400, "bad_request"),
        ("/api/v1/requests?limit=1001", 400, "bad_request"),
        ("/api/v1/requests?limit=x", 400, "bad_request"),
        ("/api/v1/requests?since=yesterday", 400, "bad_request"),
        ("/api/v1/requests?since=999999999d", 200, None),
        ("/api/v1/requests?status=maybe", 400, "bad_request"),
        ("/api/v1/requests?modle=x", 400, "bad_request"),
        ("/api/v1/batches?request_seq=-1", 400, "bad_request"),
        ("/api/v1/batches?request_seq=9999999999999999999", 400, "bad_request"),
        ("/api/v1/traces/xyz", 400, "bad_request"),
        ("/api/v1/traces/" + "ab" * 16, 404, "not_found"),
        ("/nowhere", 404, "not_found"),
    ],
)
def test_bad_questions(client, path, status, code):
    """A question that makes no sense is told what is wrong with it, in the documented shape."""
    answer = client.get(path)
    assert answer.status_code == status
    assert answer.json().get("error", {}).get("code") == code


def test_health_says_what_is_wrong(store, settings):
    """A set-aside segment or a failing insert makes health degraded, with the reason in it."""
    counters = Counters()
    health = Health(settings, store, open_registry(settings.registry), counters)
    assert health.report()["status"] == "ok"
    counters.last_error = "no space"
    assert (health.report()["status"], health.report()["spool"]["last_error"]) == ("degraded", "no space")
    counters.last_error = None
    folder = settings.spool_dir / "refused" / "traces"
    folder.mkdir(parents=True)
    (folder / "1-x.pb").write_bytes(b"")
    assert (health.report()["status"], health.report()["spool"]["refused_segments"]) == ("degraded", 1)


def test_a_store_that_went_away(clickhouse_front, http_store, settings):
    """With the store away the API says so: 503, not ready, degraded; and it recovers by itself."""
    registry = open_registry(settings.registry)
    health = Health(settings, http_store, registry, Counters())
    write_stats(settings.data_dir, 0, {})
    with TestClient(make_app(http_store, registry, health, "default")) as client:
        clickhouse_front.away = True
        assert client.get("/readyz").status_code == 503
        answer = client.get("/api/v1/requests")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert client.get("/api/v1/health").json()["status"] == "degraded"
        assert client.get("/healthz").status_code == 200
        clickhouse_front.away = False
        assert client.get("/readyz").status_code == 200


def test_a_silent_store_is_not_ready_within_seconds(http_store, settings, monkeypatch):
    """It takes connections and never answers: probes are told so, one question waits for it, and it may come back."""
    monkeypatch.setattr("axonize_server.api._READY_S", 0.2)
    health = Health(settings, http_store, open_registry(settings.registry), Counters())
    speaks, asked = threading.Event(), []
    monkeypatch.setattr(http_store, "ping", lambda: bool(asked.append(1)) or speaks.wait(30))
    write_stats(settings.data_dir, 0, {})
    with TestClient(make_app(http_store, open_registry(settings.registry), health, "default")) as client:
        for _ in range(3):
            answer = client.get("/readyz")
            assert (answer.status_code, answer.text) == (503, "the store does not answer within 0.2 s\n")
        assert len(asked) == 1
        speaks.set()
        assert client.get("/readyz").status_code == 200


def test_a_receiver_that_is_gone_does_not_count(settings):
    """What a killed receiver published is stale by its pid at once, by its age after seconds."""
    write_stats(settings.data_dir, 0, {})
    assert receivers_alive(settings.data_dir) == 1
    path = settings.data_dir / "run/receiver-0.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "pid": 2**22 - 1}))
    assert receivers_alive(settings.data_dir) == 0
    path.write_text(json.dumps({**facts, "updated_ns": facts["updated_ns"] - 60 * 10**9}))
    assert receivers_alive(settings.data_dir) == 0


def test_times_are_utc_with_nanoseconds(store, write_segment):
    """Times are RFC 3339 in UTC, whatever the process's time zone, with all nine digits."""
    start = datetime.now(timezone.utc).replace(microsecond=0) - timedelta(seconds=5)
    start_ns = int(start.timestamp()) * 10**9 + 1
    span = own_span("request", start_ns, start_ns, {})
    segment = write_segment(*as_requests([span], {}))
    store.insert(segment.path, segment.signal, segment.id)
    expected = f"{start:%Y-%m-%dT%H:%M:%S}.000000001Z"
    assert requests(store, **TENANT)[0]["start_time"] == expected
    assert trace(store, **TENANT, trace_id=span.trace_id.hex())["spans"][0]["start_time"] == expected
