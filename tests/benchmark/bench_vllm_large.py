"""As bench_vllm_paired, on a model whose steps take as long as they do on a GPU; runs in the environment that has vLLM.

Thirty pairs of waves of 300 steps: half-widths are 0.4 to 1.4 %. Takes 25 minutes.
``bench_vllm_large.py [SECONDS]``, per batch size.
"""

from __future__ import annotations

import sys

import bench_vllm_paired
from bench_vllm_engine import LARGE, say_rows

if __name__ == "__main__":
    say_rows(bench_vllm_paired.run(*map(float, sys.argv[1:2] or [bench_vllm_paired.SECONDS]), LARGE))
