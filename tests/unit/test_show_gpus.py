"""What the tree of GPUs and `top` look like."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from axonize_server.show_gpus import print_gpus
from axonize_server.show_top import top_lines

NOW = "2026-03-01T10:20:30.000000000Z"
LONG_AGO = "2026-03-01T08:00:00.000000000Z"
INSTANCES = [f"9b0c6f5e-0000-4000-8000-00000000000{n}" for n in range(3)]


@pytest.fixture(autouse=True)
def _utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def a_reading(**fields):
    return {
        "time": NOW,
        "utilization": 0.31,
        "memory_used_bytes": 40 << 30,
        "memory_total_bytes": 80 << 30,
        "power_w": 312.4,
        "energy_j": 1.0,
        "temperature_c": 61.0,
        "provenance": "measured",
    } | fields


def a_context(n=0, **fields):
    unknown = dict.fromkeys(("rank", "container", "pod", "namespace", "node", "service"))
    return unknown | {
        "context_id": f"node-a/{100 + n}/cuda:0",
        "device": "cuda:0",
        "host": "node-a",
        "pid": 100 + n,
        "instance_id": INSTANCES[n],
        "engine": "vllm",
        "sharing": "mig",
        "provenance": "measured",
        "valid_from": NOW,
        "valid_to": None,
        "last_seen_at": NOW,
        **fields,
    }


def a_slice(n, *contexts, **fields):
    return {
        "compute_resource": f"MIG-7a960fd{n}-e529-5c9a-8987-706bec07eb80",
        "generation": 1,
        "kind": "mig",
        "mig_profile": "1g.10gb",
        "gpu_instance_id": n,
        "provenance": "measured",
        "last_seen_at": NOW,
        "reading": a_reading(power_w=None, temperature_c=None, memory_total_bytes=10 << 30, memory_used_bytes=6 << 30),
        "contexts": list(contexts),
    } | fields


def a_gpu(n, *resources, **fields):
    return {
        "gpu_uuid": f"GPU-bbf8a82{n}-f887-5fa4-80d4-cb4d6b3f8bc1",
        "model": "NVIDIA H100 80GB HBM3",
        "node": "node-a",
        "mig_enabled": bool(resources),
        "provenance": "measured",
        "last_seen_at": NOW,
        "reading": a_reading(),
        "compute_resources": list(resources),
    } | fields


def a_tree(*gpus):
    return {"at": NOW, "gpus": list(gpus)}


def whole(gpu, *contexts):
    """A GPU that is one resource."""
    gpu["compute_resources"] = [a_slice(0, *contexts, compute_resource=gpu["gpu_uuid"], kind="full", mig_profile=None)]
    return gpu


FLEET = a_tree(
    a_gpu(0, a_slice(1, a_context(0, pod="chat-0", namespace="prod")), a_slice(2, a_context(1, container="c" * 64))),
    whole(a_gpu(1, mig_enabled=False), a_context(2, rank=3, sharing="time-slicing")),
    a_gpu(2, node="node-b", provenance="simulated"),
)


def _printed(tree, width, **more):
    console = Console(
        width=width or 100_000, force_terminal=bool(width), color_system=None, highlight=False, file=io.StringIO()
    )
    print_gpus(console, tree, **more)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_every_line_fits_and_no_number_is_cut(width):
    """Names give way, readings stay whole and stand below each other."""
    lines = _printed(FLEET, width)
    assert max(map(len, lines)) <= width
    gpus = [line for line in lines if "GPU-" in line]
    assert len(gpus) == 3
    assert all(line.endswith("31 %    40.0/80 GiB    312 W   61 °C") for line in gpus)
    assert len({len(line) for line in lines if "GiB" in line and "W" in line}) == 1


def test_two_that_say_the_same_name_stand_under_their_slices():
    """Both processes call it cuda:0; each is the only child of its slice."""
    lines = _printed(FLEET, 120)
    first = next(at for at, line in enumerate(lines) if "MIG-7a960fd1" in line)
    assert lines[first + 1] == "│  │  └─ cuda:0 prod/chat-0 vllm pid 100"
    assert "MIG-7a960fd2" in lines[first + 2]
    assert lines[first + 3] == "│     └─ cuda:0 cccccccccccc vllm pid 101"


def test_a_whole_gpu_has_its_processes_right_below():
    """A GPU that is not sliced is one line, with how it is shared and the rank."""
    lines = _printed(FLEET, 120)
    at = next(at for at, line in enumerate(lines) if "GPU-bbf8a821" in line)
    assert lines[at + 1] == "   └─ cuda:0 node-a vllm pid 102 rank 3 time-slicing"


def test_the_heading_counts():
    """Machines, GPUs, slices, processes, power; and that something is simulated."""
    assert _printed(FLEET, 120)[0] == "2 machines · 3 GPUs · 2 slices · 3 processes · 937 W · simulated"


@pytest.mark.parametrize("width", [80, 120, None])
def test_a_simulated_gpu_says_so(width):
    """At every width, beside its name."""
    assert any("GPU-bbf8a822" in line and "(simulated)" in line for line in _printed(FLEET, width))


def test_piped_everything_is_whole():
    """A script gets full uuids and containers."""
    text = "\n".join(_printed(FLEET, None))
    assert "MIG-7a960fd1-e529-5c9a-8987-706bec07eb80" in text
    assert "c" * 64 in text
    assert "…" not in text


def test_what_is_unknown_is_a_dash():
    """No reading is no zero, and a slice nobody described is there by its uuid."""
    bare = a_slice(1, mig_profile=None, gpu_instance_id=None, reading=None, generation=None, last_seen_at=None)
    lines = _printed(
        a_tree(a_gpu(0, bare, model=None, reading=a_reading(utilization=None, memory_total_bytes=None))), 120
    )
    assert lines[3].split()[2:] == ["MIG", "–", "40.0", "GiB", "312", "W", "61", "°C"]
    assert lines[4].split()[2:] == ["–", "–", "–", "–"]


def test_silence_is_said():
    """A GPU that nobody reports any more shows for how long, not old numbers."""
    lines = _printed(a_tree(a_gpu(0, reading=None, last_seen_at=LONG_AGO)), 80)
    assert lines[-1].endswith("not reported for 2 h")


def test_a_recreated_slice_tells_its_generation():
    """From the second generation on it is shown."""
    assert any("generation 2" in line for line in _printed(a_tree(a_gpu(0, a_slice(1, generation=2))), 120))


def test_no_gpu_is_a_next_step():
    """Nothing reported is a sentence and what to do; at a time it is just said."""
    text = " ".join(_printed(a_tree(), 80))
    assert "axonize doctor" in text
    assert "AXONIZE_GPU_PROVIDER=simulated" in text
    assert _printed(a_tree(), 80, at="1h") == ["no GPU was known then"]
    assert "as of 2026-03-01 10:20:30.000" in _printed(FLEET, 120, at="1h")[0]


def an_engine(n=0, **fields):
    return {
        "instance_id": INSTANCES[n],
        "service": "chat",
        "engine": "vllm",
        "model": "llama",
        "compute_resources": [],
        "requests_per_s": 12.31,
        "errors_per_s": 0.0,
        "input_tokens_per_s": 10.0,
        "output_tokens_per_s": 1830.2,
        "ttft_p50_ms": 20.0,
    } | fields


def _top(tree, *engines, width=80, height=None):
    console = Console(width=width, force_terminal=True, color_system=None, highlight=False, file=io.StringIO())
    return [
        line.plain for line in top_lines(console, tree, {"window_s": 60.0, "engines": list(engines)}, height=height)
    ]


@pytest.mark.parametrize("width", [80, 120])
def test_top_shows_each_engine_where_it_runs(width):
    """Rates stand at the process on its slice; what an idle process does not know is a dash."""
    lines = _top(FLEET, an_engine(0), an_engine(1, requests_per_s=0.25, output_tokens_per_s=9.0), width=width)
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("10:20:30 · 12.6 req/s · 1,839 tok/s · over 60 s")
    assert [line.split()[-2:] for line in lines if "cuda:0" in line] == [
        ["12.3", "1,830"],
        ["0.25", "9.00"],
        ["0", "–"],
    ]
    assert "(simulated)" in "\n".join(lines)


def test_top_shows_engines_no_context_names():
    """An engine is shown on the resource its spans name, else at the end."""
    by_span = an_engine(0, instance_id="x", compute_resources=["GPU-bbf8a822-f887-5fa4-80d4-cb4d6b3f8bc1"])
    lines = _top(FLEET, by_span, an_engine(1, instance_id=None, service="elsewhere"))
    at = next(at for at, line in enumerate(lines) if "GPU-bbf8a822" in line)
    assert lines[at + 1].split()[1:] == ["chat", "vllm", "llama", "12.3", "1,830"]
    assert lines[-2] == "on no known GPU"
    assert lines[-1].split() == ["elsewhere", "vllm", "llama", "12.3", "1,830"]


def test_top_without_a_gpu():
    """Engines are shown without one; with nothing at all there is a next step."""
    assert _top(a_tree(), an_engine())[-1].split()[-2:] == ["12.3", "1,830"]
    assert any("axonize doctor" in line for line in _top(a_tree()))
    assert max(map(len, _top(a_tree()))) <= 80


def test_top_fits_the_screen_and_counts_errors():
    """What does not fit is counted; failing requests stand in the heading."""
    whole_screen = _top(FLEET, an_engine(errors_per_s=0.5), width=120)
    lines = _top(FLEET, an_engine(errors_per_s=0.5), width=120, height=6)
    assert lines[:5] == whole_screen[:5]
    assert lines[5:] == [f"{len(whole_screen) - 5} more lines; --node shows one machine"]
    assert "0.50 errors/s" in lines[0]
