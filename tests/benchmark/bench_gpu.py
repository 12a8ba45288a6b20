"""GPUs: what a round of samples costs the agent, and how far the annotated power is from a scripted truth.

The scripted NVML answers at once, so the cost is ours and pynvml's; a driver's own time comes on top. For the error
the clock is scripted too: power jumps between 100 and 700 W every 50 or 500 ms, the energy counter is refreshed every
20 or 100 ms, spans of 10 ms to 3 s begin at random and are annotated 100 ms after they end, as the agent does.
"""

from __future__ import annotations

import ctypes
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench_table import Row

from axonize_core import attributes as names
from axonize_core.events import SourceInfo
from axonize_core.export.encoder import encode_samples
from axonize_core.gpu.nvml import NvmlProvider
from axonize_core.gpu.nvml_reader import NvmlReader
from axonize_core.gpu.sampler import Sampler
from fix_nvml import Machine, build_library

S, MS = 1_000_000_000, 1_000_000
LOW_MW, HIGH_MW = 100_000, 700_000
DISPATCH_NS = 100 * MS
LIMIT_MS = 20.0
ROUNDS = 40
SECONDS = 40


def run() -> list[Row]:
    """Return the rows; none, and why, where no compiler builds the library."""
    with tempfile.TemporaryDirectory() as directory:
        library = build_library(Path(directory))
        if library is None:
            print("bench_gpu: no C compiler, so no scripted NVML", file=sys.stderr)
            return []
        ctypes.CDLL(str(library))
        machine = Machine(Path(directory) / "machine.txt")
        os.environ["NVML_STUB_SCRIPT"] = str(machine.path)
        return [*_cost(machine), *_errors(machine)]


def _cost(machine: Machine) -> list[Row]:
    for number in range(8):
        machine.add_gpu(number)
        for start, gi in enumerate(range(7, 14)):
            machine.add_slice(number, gi, "1g.10gb", start)
    machine.write()
    seconds = iter(range(10**6))
    provider = NvmlProvider(lambda: float(next(seconds)))  # looks what there is in every round
    provider._reader.refresh_ns = dict.fromkeys((gpu["uuid"] for gpu in machine.gpus.values()), 0)
    sampler = Sampler(provider, 1.0)
    rounds, encodings = [], []
    for _ in range(ROUNDS):
        before = time.process_time()
        samples = sampler.sample_once()
        infos = sampler.announce()
        between = time.process_time()
        encode_samples([*samples, *infos])
        rounds.append((between - before) * 1000)
        encodings.append((time.process_time() - between) * 1000)
    assert len(samples) == 64, len(samples)
    sampler.stop()
    sample_ms, encode_ms = statistics.median(rounds[1:]), statistics.median(encodings[1:])
    return [
        Row(
            "gpu: one round, 8 GPUs x 7 slices, agent CPU",
            f"{sample_ms:.1f} ms",
            f"{LIMIT_MS:.0f} ms",
            "limit",
            f"{sample_ms / LIMIT_MS:.2f}",
            "< 1",
            sample_ms < LIMIT_MS,
        ),
        Row(
            "gpu: the same, encoded as OTLP",
            f"{sample_ms + encode_ms:.1f} ms",
            f"{LIMIT_MS:.0f} ms",
            "limit",
            f"{(sample_ms + encode_ms) / LIMIT_MS:.2f}",
            "< 1",
            sample_ms + encode_ms < LIMIT_MS,
        ),
    ]


def _errors(machine: Machine) -> list[Row]:
    rows = []
    for half_ms in (50, 500):
        for refresh_ms in (20, 100):
            for interval_ms in (100, 1000):
                rows.append(_error(machine, half_ms, refresh_ms, interval_ms))
    return rows


def _energy_j(half_ns: int, at_ns: int) -> float:
    """The integral of the scripted power since 0."""
    periods, rest = divmod(at_ns, 2 * half_ns)
    low_ns, high_ns = periods * half_ns + min(rest, half_ns), periods * half_ns + max(0, rest - half_ns)
    return (low_ns * LOW_MW + high_ns * HIGH_MW) / 1e12


def _error(machine: Machine, half_ms: int, refresh_ms: int, interval_ms: int) -> Row:
    """Play ``SECONDS`` and compare every span's power with the truth; the peer is the latest NVML power reading."""
    machine.gpus.clear()
    machine.slices.clear()
    uuid = machine.add_gpu(0, power=f"{LOW_MW}:{HIGH_MW}:{half_ms}", refresh_ms=refresh_ms, energy=0)
    machine.system["clock"] = 0
    machine.write()
    now = [0]
    provider = NvmlProvider(lambda: now[0] / 1e9)
    provider._reader = NvmlReader(lambda: now[0])
    provider._reader.refresh_ns = {uuid: refresh_ms * MS}
    sampler = Sampler(provider, interval_ms / 1000, clock=lambda: now[0])
    rng = random.Random(half_ms + refresh_ms + interval_ms)
    source = SourceInfo("i", "vllm", "s", "m", "p", ("cuda", 0, uuid), {}, 1)
    steps = [(t + rng.randrange(3 * MS), None) for t in range(10 * S, (10 + SECONDS) * S, interval_ms * MS)]
    for _ in range(1000):
        start = rng.randrange(13 * S, (6 + SECONDS) * S)
        end = start + int(10 * MS * 300 ** rng.random())
        steps.append((end + DISPATCH_NS, (start, end)))
    ours, peers = [], []
    for at_ns, span in sorted(steps, key=lambda step: step[0]):
        now[0] = at_ns
        if span is None:
            machine.system["clock"] = at_ns
            machine.write()
            (sample,) = sampler.sample_once()
            continue
        truth = (_energy_j(half_ms * MS, span[1]) - _energy_j(half_ms * MS, span[0])) / (span[1] - span[0]) * S
        ours.append(abs(sampler.annotate(source, *span)[names.GPU_POWER_W] - truth))
        peers.append(abs(sample.power_w - truth))
    sampler.stop()
    del machine.system["clock"]
    mean, peer = statistics.fmean(ours), statistics.fmean(peers)
    p95 = statistics.quantiles(ours, n=20)[-1]
    return Row(
        f"gpu: power error, steps {half_ms} ms, counter {refresh_ms} ms old, sampled every {interval_ms} ms",
        f"{mean:.0f} W (p95 {p95:.0f})",
        f"{peer:.0f} W",
        "NVML's power, 1 s average",
        f"{mean / peer:.2f}",
        "<= 1.05",
        mean <= 1.05 * peer,
    )


if __name__ == "__main__":
    for row in run():
        print(row)
