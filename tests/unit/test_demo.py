"""The demo's parts: the load it serves, the environment it serves in, and how it judges what came back."""

from __future__ import annotations

import io
import json
import socket

import pytest

from axonize_hf.demo import make_load
from axonize_server import demo_load, demo_report, local
from axonize_server.client import ApiClient
from fix_api import api_batch, api_failed_request, api_request

SERVED = {"served": 3, "failed": 1, "dropped": 0}


def _health(rows, *, segments=0, counters=None):
    return {"store": {"rows": rows}, "spool": {"segments": segments}, "counters": counters or {}}


def _result(**changes):
    requests = [api_request(0), api_request(1), api_failed_request(2)]
    given = {
        "expected": 3,
        "requests": requests,
        "batches": [api_batch(1)],
        "unbatched": [],
        "rows_before": {"spans": 100, "batches": 5},
        "rows": {"spans": 110, "batches": 6},
        "losses": {},
    }
    return demo_report.Result(**(given | changes))


def test_a_load_is_mixed_and_repeatable():
    """Short and long requests, some with a caller's trace, one that must fail; the seed decides all but trace ids."""
    load = make_load(40, 7, "ab")
    assert {arrival.max_new_tokens for arrival in load} == {0, 16, 48}
    assert [arrival.max_new_tokens for arrival in load].count(0) == 1
    assert 0 < sum(arrival.traceparent is not None for arrival in load) < 40
    assert len({arrival.request_id for arrival in load}) == 40
    again = make_load(40, 7, "ab")
    assert [(a.prompt, a.gap_s) for a in again] == [(a.prompt, a.gap_s) for a in load]
    assert {a.traceparent for a in again} & {a.traceparent for a in load} == {None}


def test_figures_are_what_the_store_gained():
    """Rows that were there before are not the demo's; the store's size is all rows."""
    assert demo_report.figures(_result(), SERVED) == {
        "requests": 3,
        "spans": 10,
        "batches": 1,
        "dropped": 0,
        "store_rows": 116,
        "gpu_provenance": "simulated",
    }


def test_no_device_at_all_is_unavailable():
    """An empty provenance is not taken for a measured one."""
    unknown = {"compute_resource": None, "gpu_provenance": None}
    result = _result(requests=[api_request(0, **unknown)], batches=[])
    assert demo_report.figures(result, SERVED)["gpu_provenance"] == "unavailable"


def test_what_came_back_whole_has_no_discrepancy():
    """Requests, failures, members and drops agree."""
    assert demo_report.discrepancies(_result(), SERVED) == []


@pytest.mark.parametrize(
    ("changes", "served", "said"),
    [
        ({"expected": 4}, SERVED, "3 of 4 requests visible"),
        ({}, SERVED | {"failed": 0}, "1 failed requests instead of 0"),
        ({"unbatched": [api_request(1)]}, SERVED, "1 requests in no batch"),
        ({"losses": {"spans_refused": 2}}, SERVED, "2 records dropped"),
        ({}, SERVED | {"dropped": 5}, "5 records dropped"),
        ({"requests": [api_request(0, incomplete=True), api_request(1), api_failed_request(2)]}, SERVED, "1 records"),
    ],
)
def test_what_is_missing_is_said(changes, served, said):
    """Each way of losing something is found."""
    (wrong,) = demo_report.discrepancies(_result(**changes), served)
    assert wrong.startswith(said)


def test_reading_back_waits_for_the_store_to_settle(canned_api, monkeypatch):
    """All requests visible, the spool empty and no row more than at the last look; requests of others are left out."""
    monkeypatch.setattr(demo_report, "_POLL_S", 0)
    client = ApiClient(canned_api.url)
    mine = [api_request(n, request_id=f"ab-{n:03d}") for n in range(2)]
    canned_api.answers["/api/v1/requests"] = 200, {"requests": [*mine, api_request(9)]}
    canned_api.answers["/api/v1/batches"] = 200, {"batches": [api_batch()]}
    canned_api.answers["/api/v1/health"] = 200, _health({"spans": 8}, counters={"spans_refused": 0, "acked": 3})
    result = demo_report.read_back(client, "ab", 2, {})
    assert [request["request_id"] for request in result.requests] == ["ab-000", "ab-001"]
    assert result.losses == {}
    assert [path for path, _ in canned_api.asked].count("/api/v1/health") == 2


def test_a_request_outside_the_newest_steps_is_asked_for_alone(canned_api):
    """Only what has no step of its own at all is called unbatched; one that failed before its first is not expected to."""
    requests = [api_request(0), api_request(7), api_failed_request(8)]
    client = ApiClient(canned_api.url)
    canned_api.answers["/api/v1/batches"] = 200, {"batches": [api_batch()]}
    assert demo_report._unbatched(client, requests, [api_batch()]) == []
    assert [asked["request_seq"] for _, asked in canned_api.asked] == ["7"]
    canned_api.answers["/api/v1/batches"] = 200, {"batches": []}
    assert demo_report._unbatched(client, requests, [api_batch()]) == [requests[1]]


def test_reading_back_gives_up_in_time(canned_api, monkeypatch):
    """What never arrives ends the wait; what did arrive is returned."""
    monkeypatch.setattr(demo_report, "_POLL_S", 0)
    monkeypatch.setattr(demo_report, "_VISIBLE_WITHIN_S", 0.1)
    canned_api.answers["/api/v1/requests"] = 200, {"requests": []}
    canned_api.answers["/api/v1/health"] = 200, _health({}, segments=2, counters={"segments_failed": 2})
    result = demo_report.read_back(ApiClient(canned_api.url), "ab", 2, {})
    assert (result.requests, result.losses) == ([], {"segments_failed": 2})


def test_the_model_sends_to_our_collector_only(monkeypatch):
    """Settings that would send elsewhere are left out, off switches and the rest stay."""
    monkeypatch.setattr(demo_load, "has_gpu", lambda: False)
    given = {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://elsewhere",
        "AXONIZE_AGENT": "unix:///run/agent.sock",
        "AXONIZE_DISABLED": "true",
        "PATH": "/bin",
    }
    environment = demo_load._environment(given, "http://127.0.0.1:1")
    assert {name for name in given if name in environment} == {"AXONIZE_DISABLED", "PATH"}
    assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://127.0.0.1:1"
    assert environment["AXONIZE_GPU_PROVIDER"] == "simulated"
    chosen = demo_load._environment({"AXONIZE_GPU_PROVIDER": "none"}, "http://127.0.0.1:1")
    assert chosen["AXONIZE_GPU_PROVIDER"] == "none"


def test_a_gpu_is_not_simulated(monkeypatch):
    """With a real device the provider is left to find it."""
    monkeypatch.setattr(demo_load, "has_gpu", lambda: True)
    assert "AXONIZE_GPU_PROVIDER" not in demo_load._environment({}, "http://127.0.0.1:1")


def test_what_libraries_print_is_no_progress():
    """Lines that are no JSON object are passed over."""
    lines = io.StringIO("Loading…\n[1]\n" + json.dumps({"served": 2}) + "\n")
    assert list(demo_load._facts(lines)) == [{"served": 2}]


def test_ports_are_told_apart():
    """A port somebody listens on is not free; one just given is."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert not local.port_is_free(taken.getsockname()[1])
    assert local.port_is_free(local.free_port())


def test_a_log_tail_is_short_and_never_fails(tmp_path):
    """The last lines, or why there are none."""
    log = tmp_path / "a.log"
    assert "No such file" in local.log_tail(log)
    log.write_bytes(b"")
    assert local.log_tail(log) == "  (its log is empty)"
    log.write_bytes(b"".join(b"line %d \xff\n" % n for n in range(100)))
    assert local.log_tail(log).splitlines()[-1].startswith("  line 99")
    assert len(local.log_tail(log).splitlines()) == 15


def test_a_collector_that_ends_shows_its_log(tmp_path, monkeypatch):
    """Its exit code and last words are in the error."""
    monkeypatch.setattr(local, "_COMMAND", "import sys; sys.exit('no room')")
    collector = local.LocalCollector(tmp_path, http_port=1, api_port=local.free_port())
    with pytest.raises(local.LocalCollectorError, match=r"exit code 1:\n  no room"), collector.running():
        pass


def test_a_collector_that_is_never_ready_is_given_up_and_ended(tmp_path, monkeypatch):
    """One that ignores SIGTERM is killed."""
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    monkeypatch.setattr(local, "_COMMAND", stubborn)
    monkeypatch.setattr(local, "_STOP_S", 0.1)
    collector = local.LocalCollector(tmp_path, http_port=1, api_port=local.free_port())
    assert collector.stop() is None
    with pytest.raises(local.LocalCollectorError, match=r"not ready in 1 s:\n  on"):
        collector.start(timeout_s=1)
    assert collector.stop() == -9


def test_nvml_decides_whether_there_is_a_gpu(monkeypatch):
    """No driver, no device and one device."""
    import pynvml

    real = demo_load.has_gpu()
    assert real in (True, False)
    calls = {"nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlDeviceGetCount": lambda: 1}
    for name, call in calls.items():
        monkeypatch.setattr(pynvml, name, call)
    assert demo_load.has_gpu()
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 0)
    assert not demo_load.has_gpu()
