"""A real vLLM engine in this process, and a load on it that stays the same: what the micro and paired rows run on."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

# Before vLLM is imported: the engine on this very thread, one thread for a step, and no network.
os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_LOGGING_LEVEL="ERROR",
    TOKENIZERS_PARALLELISM="false",
)

PROMPT_TOKENS = 16


class Model(NamedTuple):
    """What an engine runs: steps that are as short as vLLM's can be, where each microsecond shows, or as long as a GPU's."""

    name: str
    options: dict[str, Any]
    answer_tokens: int
    """Of each request of a wave."""
    least_rounds: int
    warm_waves: int


TINY = Model("vLLM", {}, 100, 100, 5)
"""0.14 M parameters: 0.7 to 1.4 ms a step, at batch 1 to 32."""
_LAYERS = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "vocab_size": 32_000}
_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64}
LARGE = Model("vLLM, 56 M", {"load_format": "dummy", "hf_overrides": {**_LAYERS, **_HEADS}}, 300, 30, 1)
"""56 M parameters: 7 to 25 ms a step, at batch 1 to 32."""


def tiny_model() -> str:
    """Return the folder of the model: in the environment, or beside it."""
    prefix = Path(sys.prefix)
    return str(next(path for path in (prefix / "tiny", prefix.parent / "tiny") if path.exists()))


def make_engine(most: int, model: Model = TINY):
    """Return vLLM's LLMEngine for so many requests at a time."""
    from vllm import LLM

    llm = LLM(
        tiny_model(),
        dtype="float32",
        enforce_eager=True,
        distributed_executor_backend="uni",
        max_model_len=1024,
        max_num_seqs=most,
        enable_prefix_caching=False,
        disable_log_stats=False,
        **model.options,
    )
    return llm.llm_engine


def scheduler_of(engine):
    """Return the scheduler of an engine that runs in this process."""
    return engine.engine_core.engine_core.scheduler


class Load:
    """So many requests at a time, each of ``answer_tokens``, in steps without an end or wave by wave."""

    def __init__(self, engine, batch: int, answer_tokens: int = 64) -> None:
        from vllm import SamplingParams

        self._engine = engine
        self._batch = batch
        self.answer_tokens = answer_tokens
        self._params = SamplingParams
        self._ids = itertools.count()

    def fill(self) -> None:
        """Begin, all with answers of the same length."""
        for _ in range(self._batch):
            self._add(self.answer_tokens)

    def steps(self, count: int) -> list[int]:
        """Run so many steps of the engine, where one ends the next begins; return the time of each in ns."""
        step, clock, took_ns = self._engine.step, time.perf_counter_ns, []
        before_ns = clock()
        for _ in range(count):
            for output in step():
                if output.finished:
                    self._add(self.answer_tokens)
            now_ns = clock()
            took_ns.append(now_ns - before_ns)
            before_ns = now_ns
        return took_ns

    def wave(self) -> list[int]:
        """Run until all that are there have ended; return the time of each step in ns."""
        engine, clock, took_ns = self._engine, time.perf_counter_ns, []
        before_ns = clock()
        while engine.has_unfinished_requests():
            engine.step()
            now_ns = clock()
            took_ns.append(now_ns - before_ns)
            before_ns = now_ns
        return took_ns

    def _add(self, tokens: int) -> None:
        params = self._params(max_tokens=tokens, ignore_eos=True, temperature=0.0)
        prompt = {"prompt_token_ids": [7 + k for k in range(PROMPT_TOKENS)]}
        self._engine.add_request(f"bench-{next(self._ids)}", prompt, params)


def say_rows(rows) -> None:
    """Hand the rows to ``bench_vllm.py``, which started this process."""
    print("rows: " + json.dumps([list(row) for row in rows]), flush=True)
