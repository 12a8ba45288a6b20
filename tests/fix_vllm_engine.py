"""Stand-ins for vLLM's scheduler and front end, for what needs no engine: call orders, failures of our own code.

They have the names and behaviour that ``axonize_vllm._supported`` lists, and nothing else. The real classes run in
tests/vllm.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from types import ModuleType, SimpleNamespace

import pytest

from axonize_core.recorder import get_recorder


class Request:
    """A request as the scheduler knows it."""

    def __init__(self, request_id, prompt=8, *, traceparent=None, adapter=None, pooling=False):
        self.request_id = request_id
        self.arrival_time = time.time() - 0.25
        self.num_prompt_tokens = prompt
        self.num_output_tokens = self.num_computed_tokens = 0
        self.trace_headers = {"traceparent": traceparent} if traceparent else None
        self.lora_request = SimpleNamespace(lora_name=adapter) if adapter else None
        self.pooling_params = object() if pooling else None
        self.reason = None

    def get_finished_reason(self):
        """Return what it ended by."""
        return self.reason


class Scheduler:
    """Plans all requests, one token each once its prompt is done; ``stop``, ``preempt`` and ``skip`` are orders."""

    def __init__(self, vllm_config=None, blocks=101):
        self.vllm_config = vllm_config or config()
        self.requests, self.running, self.finished_req_ids = {}, [], set()
        self.waiting, self.skipped_waiting = deque(), deque()
        free = SimpleNamespace(num_free_blocks=75)
        self.kv_cache_manager = SimpleNamespace(
            block_pool=SimpleNamespace(free_block_queue=free, num_gpu_blocks=blocks)
        )
        self.preempt, self.skip, self.stop, self.drafts, self.quiet = set(), set(), {}, {}, False
        self._known = set()

    def add_request(self, request):
        """Take a request."""
        self.requests[request.request_id] = request

    def finish_requests(self, request_ids, finished_status):
        """End requests from outside."""
        for request_id in list(request_ids):
            if request_id in self.requests:
                self._end(request_id, finished_status)

    def schedule(self, throttle_prefills=False):
        """Plan the next step."""
        preempted, self.preempt = self.preempt, set()
        for request_id in preempted:
            self.requests[request_id].num_computed_tokens = 0
        left_out = preempted | self.skip
        members = [] if self.quiet else [r for r in self.requests.values() if r.request_id not in left_out]
        tokens, new, cached = {}, [], []
        for request in members:
            known = request.num_prompt_tokens + request.num_output_tokens
            drafts = self.drafts.get(request.request_id, [])
            tokens[request.request_id] = max(1, known - request.num_computed_tokens) + len(drafts)
            if request.request_id in self._known:
                cached.append((request.request_id, request.num_computed_tokens))
            else:
                data = {"req_id": request.request_id, "num_computed_tokens": request.num_computed_tokens}
                new.append(SimpleNamespace(**data))
            self._known.add(request.request_id)
            request.num_computed_tokens += tokens[request.request_id]
        self.running, self.finished_req_ids = members, set()
        return SimpleNamespace(
            num_scheduled_tokens=tokens,
            total_num_scheduled_tokens=sum(tokens.values()),
            scheduled_new_reqs=new,
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=[name for name, _ in cached], num_computed_tokens=[n for _, n in cached]
            ),
            preempted_req_ids=preempted,
            scheduled_spec_decode_tokens={name: d for name, d in self.drafts.items() if name in tokens},
        )

    def update_from_output(self, output, result):
        """Take a step's tokens; those in ``stop`` end with it."""
        outputs = []
        for request_id in output.num_scheduled_tokens:
            request = self.requests.get(request_id)
            if request is None:
                continue
            drafted = len(output.scheduled_spec_decode_tokens.get(request_id, ()))
            came = 1 + (drafted and 1)
            request.num_computed_tokens -= drafted - (came - 1)
            request.num_output_tokens += came
            outputs.append(SimpleNamespace(request_id=request_id, new_token_ids=[0] * came))
            if request_id in self.stop:
                self._end(request_id, self.stop.pop(request_id))
        return {0: SimpleNamespace(outputs=outputs)}

    def _end(self, request_id, reason):
        self.requests.pop(request_id).reason = reason
        self.finished_req_ids.add(request_id)


def config(**more):
    """Return a configuration with what a source is made of."""
    parts = {
        "instance_id": "engine1",
        "model_config": SimpleNamespace(served_model_name="tiny", model="/models/tiny"),
        "parallel_config": SimpleNamespace(data_parallel_size=1, data_parallel_rank=0),
        "cache_config": SimpleNamespace(block_size=4),
    }
    return SimpleNamespace(**parts, **more)


@pytest.fixture
def own_sources():
    """Let this test's process have no sources but its own: a front end of another test would be waited for."""
    sources = get_recorder().sources
    before = sources[:]
    sources.clear()
    yield
    sources[:] = before


@pytest.fixture
def fake_vllm(monkeypatch):
    """Make modules importable: ``fake_vllm("vllm.config.scheduler", SchedulerConfig=...)``."""

    def make(name, **attributes):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            path = ".".join(parts[:end])
            if path not in sys.modules or not hasattr(sys.modules[path], "axonize_fake"):
                module = ModuleType(path)
                module.axonize_fake = True
                module.__path__ = []
                monkeypatch.setitem(sys.modules, path, module)
        for key, value in attributes.items():
            monkeypatch.setattr(sys.modules[name], key, value, raising=False)
        return sys.modules[name]

    return make
