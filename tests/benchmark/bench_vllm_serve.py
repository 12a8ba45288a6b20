"""``vllm serve`` under streaming load, with and without ``--plugin axonize``; runs in the environment that has vLLM.

One server at a time, each in a process tree of its own, loaded by a client in another. A block has one server of each
condition: off, on, collector down, and buffer full (no agent, a small queue); every other block runs backwards, so that a
drift of the machine cancels (ABBA). ``bench_vllm_serve.py [BLOCKS [LOAD_S]]``.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import SimpleNamespace

from bench_table import Row

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from bench_vllm_engine import say_rows, tiny_model

from axonize_core.absence import read_absences
from axonize_core.bench.agent_process import counters, running_sink
from axonize_core.bench.intervals import paired_interval
from axonize_core.doctor import agent_status
from vllm_server import Server, Surroundings

CONDITIONS = ("off", "on", "down", "full")
NAMES = {"on": "on", "down": "on, collector down", "full": "on, buffer full"}
BLOCKS, LOAD_S, WARM_S, CONCURRENCY = 3, 10.0, 3.0, 8
METRICS = ("tokens_per_s", "itl_p50_ms", "itl_p99_ms", "ttft_p50_ms", "ttft_p99_ms")
UNIT = {"tokens_per_s": "tok/s", "itl_p50_ms": "ITL p50", "itl_p99_ms": "ITL p99", "ttft_p50_ms": "TTFT p50", "ttft_p99_ms": "TTFT p99"}  # fmt: skip
SMALL_QUEUE = "1000"


def run(blocks: int = BLOCKS, load_s: float = LOAD_S) -> list[Row]:
    """Return a row per condition and metric: its paired difference to off, one pair a block."""
    found = {condition: [] for condition in CONDITIONS}
    with running_sink() as endpoint, tempfile.TemporaryDirectory(prefix="axonize-bench-") as directory:
        for block in range(blocks):
            for condition in CONDITIONS if block % 2 == 0 else reversed(CONDITIONS):
                home = Path(directory, f"{block}-{condition}")
                found[condition].append(measure(home, condition, endpoint, load_s))
                print(block, condition, json.dumps(found[condition][-1]), file=sys.stderr, flush=True)
    return [row(found, condition, metric) for condition in NAMES for metric in METRICS]


def row(found, condition: str, metric: str) -> Row:
    """Return one row; nothing is asked of it but that it is shown."""
    on, off = ([measured[metric] for measured in found[name]] for name in (condition, "off"))
    interval = paired_interval([one / other for one, other in zip(on, off, strict=True)])
    agent = median(measured["agent_cpu"] for measured in found[condition])
    return Row(
        name=f"vllm serve, {NAMES[condition]}: {UNIT[metric]}",
        ours=interval.text().replace("95 % interval ", ""),
        peer=f"{median(off):.{0 if metric == 'tokens_per_s' else 2}f}",
        peer_name=f"off ({min(off):.4g} … {max(off):.4g}), {len(off)} pairs; agent {agent:.0%} of a core",
        ratio=f"± {interval.half_width:.2%}",
        target="(printed)",
        met=True,
    )


def measure(home: Path, condition: str, endpoint: str, load_s: float) -> dict[str, float]:
    """Return what the client saw of one server; fails where it did not record what its condition says."""
    with _server(home, condition, endpoint) as server:
        before = _agent_cpu_s(server.surroundings)
        client = [sys.executable, str(Path(__file__).with_name("bench_vllm_client.py"))]
        client += ["load", str(server.port), str(CONCURRENCY), str(WARM_S), str(load_s)]
        said = json.loads(subprocess.run(client, check=True, stdout=subprocess.PIPE, text=True).stdout)
        cpu_s = _agent_cpu_s(server.surroundings) - before
        _check(server.surroundings, condition)
        server.stop()
    return {**said, "agent_cpu": cpu_s / (WARM_S + load_s), "load": os.getloadavg()[0]}


@contextmanager
def _server(home: Path, condition: str, endpoint: str):
    (home / "run").mkdir(mode=0o700, parents=True)
    with socket.socket() as nobody:  # bound, but not listening: connections to it are refused
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}" if condition == "down" else endpoint
        env = {"AXONIZE_AGENT": f"unix://{home}/absent.sock", "AXONIZE_QUEUE_CAPACITY": SMALL_QUEUE}
        surroundings = Surroundings(home, SimpleNamespace(url=url), env if condition == "full" else None)
        server = Server(surroundings, Path(tiny_model()), (), axonize=condition != "off")
        try:
            server.wait_ready()
            yield server
        except BaseException:
            print(server.log[-4000:], file=sys.stderr)
            raise
        finally:
            server.close()


def _agent_cpu_s(surroundings) -> float:
    return sum(sum(agent.cpu_times()[:2]) for agent in surroundings.agents())


def _check(surroundings, condition: str) -> None:
    """See that the condition is what its name says.

    Raises:
        AssertionError: it is not.
    """
    if condition in ("off", "full"):
        assert not surroundings.agents(), "an agent where there must be none"
        dropped = sum(absence.dropped for absence in read_absences(surroundings.runtime))
        assert (dropped > 0) == (condition == "full"), f"{dropped} records dropped"
        return
    facts = [agent_status(path) for path in surroundings.runtime.glob("agent-*.sock")]
    spans = [counters(one) for one in facts]
    exported, waiting = (sum(one.get(name, 0) for one in spans) for name in ("spans_exported", "spans_waiting"))
    assert sum(one["counts"].get("requests", 0) for one in facts), f"no request was recorded: {facts}"
    assert exported if condition == "on" else waiting and not exported, f"{exported} exported, {waiting} wait"


if __name__ == "__main__":
    blocks, load_s = itertools.islice(itertools.chain(sys.argv[1:], (BLOCKS, LOAD_S)[len(sys.argv) - 1 :]), 2)
    say_rows(run(int(blocks), float(load_s)))
