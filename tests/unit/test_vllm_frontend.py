"""vLLM's front end as records: what only it sees of a request."""

from __future__ import annotations

import asyncio
from collections import deque
from types import SimpleNamespace

import pytest

from axonize_core import attributes as names
from axonize_core.recorder import get_recorder
from axonize_core.testing import capture_events
from axonize_vllm import frontend, http, scheduler
from fix_vllm_engine import Request, Scheduler, config

TRACEPARENT = "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"


class Processor:
    """An output processor: ``stops`` are those in whose text it finds a stop string."""

    def __init__(self):
        self.request_states, self.stops, self.kind = {}, set(), "DELTA"

    def add_request(self, request, prompt, parent_req=None, request_index=0, queue=None):
        stats = SimpleNamespace(num_generation_tokens=0, first_token_latency=0.0)
        self.request_states[request.request_id] = SimpleNamespace(
            stats=stats if queue is None else None,
            detokenizer=None if request.pooling_params else object(),
            parent_req=parent_req,
            request_index=request_index,
            prompt_len=request.num_prompt_tokens,
            output_kind=SimpleNamespace(name=self.kind),
        )

    def process_outputs(self, engine_core_outputs, engine_core_timestamp=None, iteration_stats=None):
        aborts = []
        for output in engine_core_outputs:
            state = self.request_states[output.request_id]
            if state.stats:
                state.stats.num_generation_tokens += len(output.new_token_ids)
                state.stats.first_token_latency = 0.125
            stopped = output.request_id in self.stops
            if output.finish_reason or stopped:
                del self.request_states[output.request_id]
                if not output.finish_reason:
                    aborts.append(output.request_id)
                if iteration_stats is not None:
                    reason = "stop" if stopped else output.finish_reason
                    iteration_stats.finished_requests.append(SimpleNamespace(finish_reason=reason, e2e_latency=0.5))
        return SimpleNamespace(reqs_to_abort=aborts)

    def abort_requests(self, request_ids, internal):
        return [name for name in request_ids if self.request_states.pop(name, None)]

    def propagate_error(self, e):
        self.error = e


class FrontEnd:
    """An AsyncLLM: it drops the caller's headers, as one that does not trace."""

    def __init__(self, engine):
        self.vllm_config, self.output_processor, self.engine = config(), Processor(), engine

    async def is_tracing_enabled(self):
        return False

    async def add_request(
        self, request_id, prompt, params, arrival_time=None, lora=None, more=None, trace_headers=None
    ):
        request = Request(request_id)
        request.external_req_id = f"caller-{request_id}"
        self.output_processor.add_request(request, prompt)
        self.engine.add_request(request)

    def step(self, statistics=None):
        """Run a step of the engine and take its outputs over, as the loop of outputs does."""
        outputs = self.engine.update_from_output(self.engine.schedule(), None)[0].outputs
        for output in outputs:
            request = self.engine.requests.get(output.request_id)
            output.finish_reason = None if request else "length"
        result = self.output_processor.process_outputs(outputs, 0.0, iteration_stats=statistics)
        self.engine.finish_requests(result.reqs_to_abort, "abort")


pytestmark = pytest.mark.usefixtures("own_sources")


@pytest.fixture
def server(own_sources):
    with capture_events() as captured:
        engine = Scheduler()
        scheduler.record(engine)
        server = FrontEnd(engine)
        frontend.record(server)
        server.captured = captured
        yield server
    assert not get_recorder().errors


def statistics():
    return SimpleNamespace(finished_requests=[SimpleNamespace(finish_reason="x", e2e_latency=9.0)])


def add(server, name, **more):
    asyncio.run(server.add_request(name, None, None, **more))


def ended(server):
    """Return all requests by their callers' ids, with their attributes."""
    server.captured.flush()
    server.captured._recorder.close()
    return {r.engine_id: (r, dict(r.attributes)) for r in server.captured.requests}


def test_a_front_end_is_known_before_its_first_request(monkeypatch):
    """It is told of as soon as it is there; an agent that does not know it would not wait for it."""
    recorder, known = get_recorder(), []
    monkeypatch.setattr(recorder, "start", lambda: known.extend(dict(told[5]) for _, told in recorder.sources))
    frontend.record(FrontEnd(Scheduler()))
    assert "frontend" in [attributes.get("ai.role") for attributes in known]


def test_a_stop_string_is_the_front_ends_finding(server):
    """The engine sees an abort, the caller a stop; its own latencies and the tokens it was given are told."""
    add(server, "a")
    add(server, "b")
    server.step(statistics())
    server.output_processor.stops = {"a"}
    server.engine.stop = {"b": "length"}
    server.step(statistics())
    found = ended(server)
    a, attributes = found["a"]
    assert (a.finish_reason, a.output_tokens, a.request_id) == ("stop", 2, "a")
    assert attributes[names.FINISH_REASON_SOURCE] == "frontend"
    assert (attributes[names.FRONTEND_TTFT_S], attributes[names.FRONTEND_E2E_S]) == (0.125, 0.5)
    assert found["b"][0].finish_reason == "length"


def test_without_vllms_statistics_reasons_are_known_still(server):
    """--disable-log-stats: stop strings by what is aborted, no latencies."""
    add(server, "a")
    add(server, "b")
    server.output_processor.stops = {"a"}
    server.engine.stop = {"b": "length"}
    server.step()
    found = ended(server)
    assert (found["a"][0].finish_reason, found["b"][0].finish_reason) == ("stop", "length")
    assert names.FRONTEND_E2E_S not in found["a"][1]


def test_a_client_that_went_away(server):
    """What was computed for it and what it was given are told apart; a second abort is nothing."""
    add(server, "a")
    server.step()
    server.engine.update_from_output(server.engine.schedule(), None)
    for _ in range(2):
        server.output_processor.abort_requests(["a"], internal=True)
        server.engine.finish_requests(["a"], "abort")
    (request, attributes), *others = ended(server).values()
    assert (request.finish_reason, request.output_tokens, attributes[names.DISCARDED_TOKENS]) == ("abort", 1, 1)
    assert not others


def test_the_callers_trace_reaches_the_engine(server):
    """Its headers travel though vLLM does not trace, by name or by position, and only with their own request."""
    assert asyncio.run(server.is_tracing_enabled())
    add(server, "a", trace_headers={"traceparent": TRACEPARENT})
    asyncio.run(server.add_request("b", None, None, None, None, None, {"traceparent": TRACEPARENT.replace("cd", "ce")}))
    add(server, "c")
    server.engine.stop = dict.fromkeys("abc", "stop")
    server.step()
    found = {name: request for name, (request, _) in ended(server).items()}
    assert [found[name].parent_span_id for name in "abc"] == [int("cd" * 8, 16), int("ce" * 8, 16), 0]
    assert found["a"].ref.trace_id == int("ab" * 16, 16) != found["c"].ref.trace_id


@pytest.mark.parametrize("prompts", [1, 2])
def test_what_a_client_waited_for_is_taken_where_its_call_came_in(server, fake_vllm, prompts):
    """From the call until something of its answer was sent; not where it may be another request's."""

    class FastAPI:
        async def __call__(self, scope, receive, send):
            for name in "ab"[:prompts]:
                await server.add_request(name, None, None)
            server.step(statistics())
            for part in ({"type": "http.response.start"}, {"type": "http.response.body", "body": b"first"}):
                await send(part)
            server.engine.stop = dict.fromkeys("ab", "length")
            server.step(statistics())
            await send({"type": "http.response.body", "body": b"last"})

    async def send(message):
        sent.append(message.get("body"))

    sent = []
    fake_vllm("fastapi", FastAPI=FastAPI)
    http.instrument()
    http.instrument()
    app = FastAPI()
    asyncio.run(app({"type": "http"}, None, send))
    assert sent == [None, b"first", b"last"]
    found = ended(server)
    assert (found["a"][1][names.FRONTEND_TTFT_S] == 0.125) is (prompts == 2)
    assert 0 < found["a"][1][names.FRONTEND_TTFT_S] < 30
    assert http.current() is None


@pytest.mark.parametrize("kind", ["DELTA", "FINAL_ONLY"])
@pytest.mark.parametrize("sent", [True, False])
def test_an_answer_that_ends_before_anything_of_it_is_sent(server, fake_vllm, kind, sent):
    """One of a single token: told once its first part is sent, or the call is over; at once where it has no parts."""

    class FastAPI:
        async def __call__(self, scope, receive, send):
            server.output_processor.kind = kind
            await server.add_request("a", None, None)
            server.engine.stop = {"a": "length"}
            server.step(statistics())
            if sent:
                await send({"type": "http.response.body", "body": b"all"})

    async def send(message):
        pass

    fake_vllm("fastapi", FastAPI=FastAPI)
    http.instrument()
    asyncio.run(FastAPI()({"type": "http"}, None, send))
    ((_, attributes),) = ended(server).values()
    assert (attributes[names.FRONTEND_TTFT_S] == 0.125) is not (sent and kind == "DELTA")


def test_other_scopes_of_an_app_are_passed_through(fake_vllm):
    """Its life's begin and end are no calls, and a process without a server has nothing to watch."""

    class FastAPI:
        async def __call__(self, scope, receive, send):
            assert http.current() is None
            await send("passed")

    sent = []

    async def send(message):
        sent.append(message)

    http.instrument()
    fake_vllm("fastapi", FastAPI=FastAPI)
    http.instrument()
    asyncio.run(FastAPI()({"type": "lifespan"}, None, send))
    assert sent == ["passed"]


def test_several_answers_to_one_call(server):
    """Each is a request of its own that says which of them it is; more input for one that lives opens none."""
    request = Request("1_a-1234abcd")
    for _ in range(2):
        server.output_processor.add_request(request, None, object(), 1)
    server.output_processor.propagate_error(RuntimeError("dead"))
    ((alone, attributes),) = ended(server).values()
    assert (alone.request_id, alone.error, alone.incomplete) == ("a", "engine_lost", True)
    assert attributes[names.CHOICE_INDEX] == 1
    assert str(server.output_processor.error) == "dead"


def test_without_statistics_of_its_own_a_request_still_ends(server):
    """A request that vLLM keeps no statistics of has no token count of the front end; nor has one without text."""
    server.output_processor.add_request(Request("a"), None, queue=object())
    server.output_processor.add_request(Request("b", pooling=True), None)
    server.output_processor.abort_requests(["a", "b"], internal=True)
    assert [(r.output_tokens, r.finish_reason) for r, _ in ended(server).values()] == [(None, "abort")] * 2


def test_statistics_that_cannot_be_read(server):
    """The request ends by what its output says, and the failure is counted."""
    server.output_processor.add_request(Request("a"), None)
    output = SimpleNamespace(request_id="a", finish_reason="length", new_token_ids=(7,))
    statistics = SimpleNamespace(finished_requests=deque())  # it has no slices
    server.output_processor.process_outputs([output], 0.0, statistics)
    assert [(r.output_tokens, r.finish_reason) for r, _ in ended(server).values()] == [(1, "length")]
    assert get_recorder().errors.pop("vllm.frontend.statistics") == 1


def test_failures_of_ours_stay_ours(monkeypatch):
    """Whatever breaks in our code, the server's methods do what they always did, and it is counted."""
    with capture_events():
        server = FrontEnd(Scheduler())
        frontend.record(server)
        processor = server.output_processor
        monkeypatch.setattr(frontend._FrontEnd, "_end", lambda *args: 1 / 0)
        monkeypatch.setattr(frontend._FrontEnd, "_end_finished", lambda *args: 1 / 0)
        for name in "ae":
            processor.add_request(Request(name), None)
        ended = SimpleNamespace(request_id="e", finish_reason="length", new_token_ids=())
        assert processor.process_outputs([ended]).reqs_to_abort == []
        assert processor.process_outputs([]).reqs_to_abort == []
        assert processor.abort_requests(["a"], internal=True) == ["a"]
        processor.add_request(SimpleNamespace(**vars(Request("b")), get=1), None)
        processor.propagate_error(ValueError("x"))
        assert str(processor.error) == "x"
        call = http.Call(0)
        call.when_begun(lambda: 1 / 0)
        call.begin(1)
        monkeypatch.setattr(frontend._FrontEnd, "_opened", lambda *args: 1 / 0)
        processor.add_request(Request("c"), None)
        bare = Request("d")
        del bare.trace_headers
        processor.add_request(bare, None)
        assert set(processor.request_states) == {"b", "c", "d"}
    found = {where: get_recorder().errors.pop(where) for where in list(get_recorder().errors)}
    assert found == {
        "vllm.frontend.add_request": 2,
        "vllm.frontend.headers": 1,
        "vllm.frontend.process_outputs": 1,
        "vllm.frontend.abort_requests": 1,
        "vllm.frontend.propagate_error": 1,
        "vllm.http": 1,
    }


def test_every_front_end_made_from_now_on_is_recorded(fake_vllm, caplog):
    """AsyncLLM and LLMEngine, once each; one that cannot be recorded serves without us."""

    class AsyncLLM(FrontEnd):
        def __init__(self):
            super().__init__(None)

    class LLMEngine:
        def __init__(self):
            self.made = True

    fake_vllm("vllm.v1.engine.async_llm", AsyncLLM=AsyncLLM)
    fake_vllm("vllm.v1.engine.llm_engine", LLMEngine=LLMEngine)
    frontend.instrument()
    frontend.instrument()
    with capture_events():
        assert "add_request" in vars(AsyncLLM().output_processor)
        assert LLMEngine().made
    assert "not recorded" in caplog.text
    assert get_recorder().errors.pop("vllm.frontend") == 1
