"""vLLM's own schedulers without a model: what it would answer is made up, in the order in which a GPU's engine does.

On a CPU vLLM neither schedules ahead nor has pipelines, so an engine there never calls them like this.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Engine", "make_config"]

BLOCK_SIZE = 32
STOP_TOKEN = 7


def make_config(model: Path, *, asynchronous: bool, drafts: int = 0, blocks: int = 40) -> Any:
    """Return the configuration of an engine with room for ``blocks`` blocks, and a budget of 128 tokens a step."""
    from vllm.engine.arg_utils import EngineArgs

    speculative = {"method": "ngram", "num_speculative_tokens": drafts, "prompt_lookup_max": 3} if drafts else None
    arguments = EngineArgs(
        model=str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        max_num_batched_tokens=128,
        max_num_seqs=16,
        block_size=BLOCK_SIZE,
        speculative_config=speculative,
    )
    config = arguments.create_engine_config()
    config.cache_config.num_gpu_blocks = blocks
    config.scheduler_config.async_scheduling = asynchronous  # which vLLM switches off on CPU
    return config


class Engine:
    """A scheduler and a model that is none; ``ahead`` steps are planned before the first one's output is taken over.

    Afterwards ``tokens`` are the tokens that came out by request, ``scheduled`` those of each step that had any, in the
    order of their outputs, ``late`` in how many steps each request was whose output came after its end, ``preempted`` how
    often each was preempted that did not end by the output of a step before.
    """

    def __init__(self, config: Any, scheduler_class: Any, *, ahead: int = 0, seed: int = 0):
        import torch
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        attention = FullAttentionSpec(block_size=BLOCK_SIZE, num_kv_heads=1, head_size=1, dtype=torch.float32)
        cache = KVCacheConfig(config.cache_config.num_gpu_blocks, [], [KVCacheGroupSpec(["layer"], attention)])
        self.scheduler = scheduler_class(config, cache, StructuredOutputManager(config), BLOCK_SIZE)
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(BLOCK_SIZE, sha256)
        self._drafts = config.num_speculative_tokens if config.speculative_config else 0
        self._asynchronous = config.scheduler_config.async_scheduling
        self._ahead, self._chance = ahead, random.Random(seed)
        self._planned: deque[tuple[Any, set[str]]] = deque()
        self.tokens: Counter[str] = Counter()
        self.late: Counter[str] = Counter()
        self.scheduled: list[int] = []
        self.preempted: Counter[str] = Counter()
        self.asked = 0

    def ask(self, *, prompt: list[int] | None = None, max_tokens: int = 20) -> str:
        """Add a request and return its id."""
        from vllm.v1.request import Request

        from vllm import SamplingParams

        name = f"r{self.asked}"
        self.asked += 1
        given = prompt or self._chance.choices(range(10, 500), k=self._chance.choice([1, 10, 100, 300]))
        parameters = SamplingParams(max_tokens=max_tokens, stop_token_ids=[STOP_TOKEN])
        self.scheduler.add_request(Request(name, given, parameters, None, block_hasher=self._hasher))
        return name

    def abort(self, name: str) -> None:
        """End a request from outside."""
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests([name], RequestStatus.FINISHED_ABORTED)

    def plan(self) -> None:
        """Plan a step; its output is taken over later."""
        output = self.scheduler.schedule()
        live = self.scheduler.requests
        # As a model runner does: a request whose known tokens are not all computed after the step samples nothing.
        samples = {name for name in output.num_scheduled_tokens if not live[name].is_prefill_chunk}
        self._planned.append((output, samples))

    def finish(self) -> None:
        """Take the output of the oldest planned step over."""
        from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput

        output, samples = self._planned.popleft()
        names = list(output.num_scheduled_tokens)
        if names:
            self.scheduled.append(output.total_num_scheduled_tokens)
        live = self.scheduler.requests
        self.late.update(name for name in names if name not in live)
        self.preempted.update(name for name in output.preempted_req_ids or () if name in live)
        drafts = output.scheduled_spec_decode_tokens
        sampled = [self._sample(len(drafts.get(name, ()))) if name in samples else [] for name in names]
        result = ModelRunnerOutput(names, {name: at for at, name in enumerate(names)}, sampled)
        for outputs in self.scheduler.update_from_output(output, result).values():
            for one in outputs.outputs:
                self.tokens[one.request_id] += len(one.new_token_ids)
        if self._drafts and not self._asynchronous:
            sampling = [r.request_id for r in self.scheduler.running if r.request_id in samples]
            found = [[9] * self._chance.randint(0, self._drafts) for _ in sampling]
            self.scheduler.update_draft_token_ids(DraftTokenIds(sampling, found))

    def _sample(self, drafted: int) -> list[int]:
        """Return one token and those of the drafts that were right; sometimes the one that stops."""
        return self._chance.choices([STOP_TOKEN, *range(10, 200)], k=1 + self._chance.randint(0, drafted))

    def step(self) -> None:
        """Plan a step, and take over the output of the one that was planned so many before."""
        self.plan()
        while len(self._planned) > self._ahead:
            self.finish()

    def drain(self) -> None:
        """Go on until every request has ended."""
        while self.scheduler.has_unfinished_requests() or self._planned:
            if self.scheduler.has_unfinished_requests():
                self.step()
            else:
                self.finish()
