"""Requests from vLLM's statistics, with stand-ins for its loggers and what they are told."""

import sys
import time
from collections import Counter
from types import ModuleType, SimpleNamespace

import pytest

from axonize_core.frames import Kind
from axonize_core.recorder import get_recorder
from axonize_vllm import stat_logger

CONFIG = SimpleNamespace(instance_id="1f0c3", model_config=SimpleNamespace(served_model_name="tiny"))


@pytest.fixture(autouse=True)
def errors(monkeypatch):
    """What is counted in a test, and not in the next one."""
    monkeypatch.setattr(get_recorder(), "errors", Counter())
    return get_recorder().errors


@pytest.fixture
def emitted(monkeypatch):
    """What is emitted, in order."""
    records, recorder = [], get_recorder()
    monkeypatch.setattr(recorder, "emit", lambda kind, handle, payload: records.append((kind, handle, payload)))
    monkeypatch.setattr(recorder, "start", lambda: None)
    monkeypatch.setattr(recorder, "sources", [])
    return records


@pytest.fixture
def loggers(monkeypatch, emitted):
    """vLLM's manager of loggers, instrumented."""

    class StatLoggerBase:
        def __init__(self, vllm_config, engine_index=0):
            raise NotImplementedError

    class StatLoggerManager:
        def __init__(self, vllm_config, engine_idxs=None, custom_stat_loggers=None, enable_default_loggers=True):
            self.loggers = [make(vllm_config, index) for index in engine_idxs or [0] for make in custom_stat_loggers]

    packages = ("vllm", "vllm.v1", "vllm.v1.metrics", "vllm.v1.engine")
    for name in (*packages, "vllm.v1.metrics.loggers", "vllm.v1.engine.async_llm"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = sys.modules["vllm.v1.engine.async_llm"]
    sys.modules["vllm.v1.engine"].async_llm = module
    module.load_stat_logger_plugin_factories = lambda: ["another plugin's"]
    module = sys.modules["vllm.v1.metrics.loggers"]
    sys.modules["vllm.v1.metrics"].loggers = module
    module.StatLoggerBase, module.StatLoggerManager = StatLoggerBase, StatLoggerManager
    stat_logger.instrument()
    return module


def finished(**known):
    """Statistics of a request of 1.0 s: 0.1 s until it was queued, 0.2 s there, 0.3 s prefill, 0.4 s decode."""
    given = {
        "request_id": "chatcmpl-7",
        "finish_reason": "length",
        "e2e_latency": 1.0,
        "num_prompt_tokens": 20,
        "num_generation_tokens": 5,
        "queued_time": 0.2,
        "prefill_time": 0.3,
        "decode_time": 0.4,
        "inference_time": 0.7,
        "num_cached_tokens": 16,
    }
    return SimpleNamespace(**given | known)


def iteration(*requests, ago_s=0.0):
    return SimpleNamespace(finished_requests=list(requests), iteration_timestamp=time.time() - ago_s)


def test_finished_request_is_recorded_with_its_times(emitted):
    """Durations are laid end to end before the end that vLLM stamped."""
    statistics = stat_logger.Statistics(CONFIG)
    now_s = time.perf_counter()
    statistics.record(None, iteration(finished(), ago_s=2.0))
    (opened, handle, request), (ended, same, end) = emitted
    assert (opened, ended, handle) == (Kind.REQUEST, Kind.REQUEST_END, same)
    source, arrived_ns, request_id, traceparent, operation, tokens, attributes = request
    assert dict(get_recorder().sources)[source][2] == "tiny"
    assert arrived_ns / 1e9 == pytest.approx(now_s - 3.0, abs=0.05)
    assert (request_id, traceparent, operation, tokens) == ("chatcmpl-7", None, "chat", 20)
    assert attributes == (("ai.capability", "stat_logger"),)
    reason, tokens, answered, error, attributes, (started_s, first_s, last_s) = end
    assert (reason, tokens, answered, error) == ("length", 20, 5, None)
    assert attributes == (("gen_ai.usage.cache_read.input_tokens", 16),)
    assert last_s == pytest.approx(now_s - 2.0, abs=0.05)
    assert (first_s - started_s, last_s - first_s) == pytest.approx((0.3, 0.4))


def test_first_versions_name_no_request(emitted):
    """Their statistics have no id; the request counts all the same."""
    stats = finished()
    del stats.request_id
    stat_logger.Statistics(CONFIG).record(None, iteration(stats))
    assert emitted[0][2][2:5] == (None, None, "text_completion")


@pytest.mark.parametrize(("tokens", "times"), [(0, 0), (1, 2), (2, 3), (500, 3)])
def test_as_many_times_as_are_known(tokens, times, emitted):
    """Start, first and last token; none between them is made up."""
    known = finished(num_generation_tokens=tokens, decode_time=0.0 if tokens < 2 else 0.4)
    stat_logger.Statistics(CONFIG).record(None, iteration(known))
    assert len(emitted[1][2][5] or ()) == times


def test_pooling_model_generates_nothing(emitted):
    """Its tokens are unknown rather than none."""
    config = SimpleNamespace(instance_id="x", model_config=SimpleNamespace(runner_type="pooling", model="m"))
    stat_logger.Statistics(config).record(None, iteration(finished(num_generation_tokens=0)))
    assert emitted[0][2][4] == "embeddings"
    assert emitted[1][2][2] is None


def test_request_that_failed_in_the_engine_is_an_error(emitted):
    """vLLM says so by its finish reason."""
    stat_logger.Statistics(CONFIG).record(None, iteration(finished(finish_reason="error")))
    assert emitted[1][2][3] == "engine_error"


def counts(**given):
    known = {
        "iteration_index": 7,
        "elapsed_ms": 1.5,
        "num_ctx_requests": 1,
        "num_ctx_tokens": 20,
        "num_generation_requests": 3,
        "num_generation_tokens": 3,
        "is_dummy": False,
    }
    details = SimpleNamespace(**known | given)
    return SimpleNamespace(num_running_reqs=4, num_waiting_reqs=2, kv_cache_usage=0.5, iteration_details=details)


def test_iteration_details_are_a_step_without_members(emitted):
    """Where vLLM takes them."""
    stat_logger.Statistics(CONFIG).record(counts(), None)
    ((kind, handle, (_, *payload)),) = emitted
    assert (kind, handle) == (Kind.STEP_COUNTS, 7)
    assert payload == [1_500_000, 1, 20, 3, 3, 4, 2, 0.5]


@pytest.mark.parametrize(
    "stats",
    [
        None,
        SimpleNamespace(iteration_details=None),
        SimpleNamespace(),
        counts(is_dummy=True),
        counts(num_ctx_requests=0, num_ctx_tokens=0, num_generation_requests=0, num_generation_tokens=0),
    ],
)
def test_no_step_is_recorded_where_there_was_none(stats, emitted):
    """Older versions have no details, and ranks in lockstep run dummy steps."""
    stat_logger.Statistics(CONFIG).record(stats, None)
    assert emitted == []


def test_every_engine_of_a_front_end_has_its_logger(loggers, emitted):
    """Beside those of the user, which stay first; each names its own engine."""
    theirs = loggers.StatLoggerManager(CONFIG, [0, 1], custom_stat_loggers=[lambda *_: "theirs"]).loggers
    assert theirs[0::2] == ["theirs", "theirs"]
    assert all(isinstance(logger, loggers.StatLoggerBase) for logger in theirs[1::2])
    ids = [dict(source[5])["ai.engine.id"] for _, source in get_recorder().sources]
    assert ids == ["1f0c3/0", "1f0c3/1"]
    theirs[1].record(None, iteration(finished()), mm_cache_stats=None, engine_idx=0)
    assert [kind for kind, *_ in emitted] == [Kind.REQUEST, Kind.REQUEST_END]


def test_engine_without_loggers_of_its_own_gets_ours(loggers):
    """vLLM passes None where there are none."""
    assert len(loggers.StatLoggerManager(CONFIG, custom_stat_loggers=None).loggers) == 1
    assert len(loggers.StatLoggerManager(vllm_config=CONFIG).loggers) == 1


def test_server_finds_ours_among_the_plugins(loggers):
    """So it takes statistics though --disable-log-stats was given; the manager that is told of it adds no second one."""
    factories = sys.modules["vllm.v1.engine.async_llm"].load_stat_logger_plugin_factories()
    assert factories[0] == "another plugin's"
    assert issubclass(factories[1], loggers.StatLoggerBase)
    assert len(loggers.StatLoggerManager(CONFIG, custom_stat_loggers=factories[1:]).loggers) == 1


def test_instrumenting_twice_adds_one(loggers):
    """Plugins may be loaded several times."""
    stat_logger.instrument()
    assert len(loggers.StatLoggerManager(CONFIG).loggers) == 1


def test_statistics_of_another_shape_are_counted_not_raised(loggers, emitted, errors):
    """vLLM does not call them stable."""
    (logger,) = loggers.StatLoggerManager(CONFIG).loggers
    logger.record(None, SimpleNamespace(finished_requests=[SimpleNamespace()], iteration_timestamp=0.0))
    logger.log_engine_initialized()
    assert errors == {"vllm.stat_logger": 1}


def test_logger_that_cannot_be_made_is_silent(loggers, emitted, monkeypatch):
    """The engine starts, and what it says goes nowhere."""
    monkeypatch.setattr(stat_logger, "engine_source", lambda *_, **__: 1 / 0)
    (logger,) = loggers.StatLoggerManager(CONFIG).loggers
    logger.record(None, iteration(finished()))
    assert emitted == []
