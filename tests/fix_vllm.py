"""A real vLLM: a tiny model, servers of it, the engine in one process, and where their spans arrive."""

from __future__ import annotations

import contextlib
import itertools
import sys
from pathlib import Path

import pytest

from vllm_capture import Capture
from vllm_server import Server, Surroundings


@pytest.fixture(scope="session")
def tiny():
    """The model that ``make test-vllm`` wrote into this environment."""
    path = Path(sys.prefix, "tiny")
    if not path.exists():
        pytest.skip(f"no model in {path}: make test-vllm makes an environment with vLLM and one")
    return path


@pytest.fixture
def capture():
    """An endpoint of the test's own; its spans by phase, ``wait_for(requests)``."""
    capture = Capture()
    yield capture
    capture.close()


@pytest.fixture(scope="module")
def module_capture():
    """As ``capture``, for servers that a file's tests share."""
    capture = Capture()
    yield capture
    capture.close()


@pytest.fixture(scope="session")
def serve(tiny, tmp_path_factory):
    """``with serve(*flags, env={...}, axonize=True) as server:`` starts ``vllm serve`` and waits until it is healthy.

    ``server.capture`` is its spans, ``base_url``, ``pid``, ``engine_pids``, ``worker_pids``, ``log``, ``stop()``. It has
    ended with the block, and so has its agent. One at a time on a small machine: each takes 3 GB and 20 s to start.
    ``beside=server`` is one that shares directories, capture and agent with another that lives longer.
    """
    count = itertools.count()

    @contextlib.contextmanager
    def start(*flags, env=None, axonize=True, capture=None, beside=None):
        capture = beside.capture if beside else capture
        with contextlib.closing(Capture()) if capture is None else contextlib.nullcontext(capture) as sink:
            own = beside is None
            surroundings = (
                Surroundings(tmp_path_factory.mktemp(f"serve-{next(count)}"), sink, env) if own else beside.surroundings
            )
            server = Server(surroundings, tiny, flags, axonize=axonize)
            try:
                server.wait_ready()
                yield server
                server.stop()
            except BaseException:
                print(f"log of {' '.join(server.command)}:\n{server.log}")
                raise
            finally:
                server.close(end_agents=own)

    return start


@pytest.fixture(scope="session")
def crowded(serve):
    """A server that all tests share, one after the other, whose KV cache has room for 2,560 tokens: it must preempt."""
    room = ("--block-size", "32", "--num-gpu-blocks-override", "80", "--max-num-batched-tokens", "256")
    with serve(*room, "--enable-prompt-tokens-details") as server:
        yield server


@pytest.fixture
def offline(tiny, capture, tmp_path):
    """``offline(code)`` runs code with ``make_llm()`` and ``report(facts)`` in one process; spans go to ``capture``."""

    def run(code, *, axonize=True, env=None):
        surroundings = Surroundings(tmp_path, capture, env)
        facts = surroundings.offline(tiny, code, axonize=axonize)
        surroundings.end_agents()
        return facts

    return run
