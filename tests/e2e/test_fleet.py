"""Two scripted machines, an agent each, one collector: containers that all say "cuda:0" are told apart everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from typing import NamedTuple

import pytest

from axonize_server.local import LocalCollector, free_port
from fix_nvml import ENGINE, Machine

MAIN = "from axonize_core.cli import main; main()"


class Node:
    """A machine of its own: its GPUs, its name, its agent's place."""

    def __init__(self, name, directory, library, collector):
        self.machine = Machine(directory / f"{name}.txt")
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("OTEL_", "AXONIZE_"))}
        self.environment = {
            **kept,
            "LD_LIBRARY_PATH": str(library.parent),
            "NVML_STUB_SCRIPT": str(self.machine.path),
            "AXONIZE_RUNTIME_DIR": str(directory / name),
            "AXONIZE_STATE_DIR": str(directory / f"{name}-state"),
            "AXONIZE_GPU_PROVIDER": "nvml",
            "AXONIZE_GPU_INTERVAL_MS": "100",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.otlp_url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        self.name = name


class Container:
    """A process in a container that was given one device, which it calls cuda:0."""

    def __init__(self, node, pod, gpu, device):
        self.node, self.pod, self.gpu, self.device = node.name, pod, gpu, device
        self.id = f"{pod:0>64}".replace("-", "e")
        env = {
            **node.environment,
            "OTEL_RESOURCE_ATTRIBUTES": f"host.name={node.name},container.id={self.id}",
            "OTEL_SERVICE_NAME": pod,
            "NVIDIA_VISIBLE_DEVICES": device,
            "POD_NAME": pod,
            "POD_NAMESPACE": "prod",
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", ENGINE], env=env, **pipes)
        self.instance = ""

    def request(self, name):
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        self.instance = self.process.stdout.readline().strip()
        assert self.instance

    def end(self):
        self.process.communicate(timeout=30)


class Fleet(NamedTuple):
    """What runs, and its collector."""

    collector: LocalCollector
    containers: list[Container]

    def axonize(self, *arguments):
        done = subprocess.run(
            [sys.executable, "-c", MAIN, *arguments, "--api", self.collector.client.url],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def fleet(nvml_library, tmp_path_factory):
    """node-a: one H100 in slices, two pods on two of them; node-b: two whole GPUs, a pod on each."""
    directory = tmp_path_factory.mktemp("fleet")
    collector = LocalCollector(tmp_path_factory.mktemp("collector"), http_port=free_port(), api_port=free_port())
    containers = []
    with collector.running():
        a, b = (Node(name, directory, nvml_library, collector) for name in ("node-a", "node-b"))
        sliced = a.machine.add_gpu(0)
        slices = [a.machine.add_slice(0, gi, "1g.10gb", start) for start, gi in enumerate((7, 8, 9))]
        whole = [b.machine.add_gpu(number) for number in (1, 2)]
        a.machine.write()
        b.machine.write()
        try:
            containers += [Container(a, f"chat-a{n}", sliced, slices[n]) for n in range(2)]
            containers += [Container(b, f"chat-b{n}", whole[n], whole[n]) for n in range(2)]
            fleet = Fleet(collector, containers)
            for container in containers:
                container.request(f"{container.pod}-first")
            until(lambda: [bool(held["reading"]) for held, _, _ in contexts(fleet).values()] == [True] * 4)
            for container in containers:
                container.request(f"{container.pod}-second")
            until(lambda: len(collector.client.requests()) == 8)
            yield fleet
        finally:
            for container in containers:
                container.end()


def until(condition, timeout_s=40):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)


def contexts(fleet):
    """Return pod → (resource, GPU, context) of the tree."""
    return {
        context["pod"]: (resource, gpu, context)
        for gpu in fleet.collector.client.gpus()["gpus"]
        for resource in gpu["compute_resources"]
        for context in resource["contexts"]
    }


def test_the_tree_has_every_container_on_its_own_device(fleet):
    """Four processes that say cuda:0: each stands on its slice or GPU, of its machine, with what it is."""
    found = contexts(fleet)
    assert found.keys() == {container.pod for container in fleet.containers}
    for container in fleet.containers:
        resource, gpu, context = found[container.pod]
        assert (gpu["node"], gpu["gpu_uuid"]) == (container.node, container.gpu)
        assert resource["compute_resource"] == container.device
        assert resource["kind"] == ("mig" if container.device.startswith("MIG-") else "full")
        said = [context[name] for name in ("device", "host", "container", "instance_id", "pid", "service", "namespace")]
        process = container.process.pid
        wanted = ["cuda:0", container.node, container.id, container.instance, process, container.pod, "prod"]
        assert said == wanted
    (empty,) = [
        r for gpu in fleet.collector.client.gpus()["gpus"] for r in gpu["compute_resources"] if not r["contexts"]
    ]
    assert (empty["kind"], empty["gpu_instance_id"], empty["generation"]) == ("mig", 9, 1)


def test_every_span_names_its_own_device(fleet):
    """Prefill, decode and step of each request carry slice, GPU and context of the process that served it."""
    client = fleet.collector.client
    names = {}
    for request in client.requests():
        container = next(c for c in fleet.containers if c.instance == request["instance_id"])
        assert request["compute_resource"] == container.device
        for span in client.trace(request["trace_id"])["spans"]:
            assert span["resource"]["gpu.context.id"] == contexts(fleet)[container.pod][2]["context_id"]
            if span["phase"] != "queue":
                names.setdefault(span["phase"], set()).add(container.pod)
                on = [span["attributes"][name] for name in ("gpu.compute_resource.id", "hw.id")]
                assert on == [container.device, container.gpu]
    everybody = {container.pod for container in fleet.containers}
    assert names == dict.fromkeys(("request", "prefill", "decode"), everybody)
    steps = {(batch["instance_id"], batch["compute_resource"]) for batch in client.batches()}
    assert steps == {(container.instance, container.device) for container in fleet.containers}


def test_the_commands_tell_them_apart(fleet):
    """`axonize gpus`, `top` and `requests`: each pod below its device below its machine, each request with its device."""
    for shown in (fleet.axonize("gpus"), fleet.axonize("top", "--once")):
        lines = shown.splitlines()
        for container in fleet.containers:
            at = next(n for n, line in enumerate(lines) if container.pod in line)
            assert "cuda:0" in lines[at]
            above = lines[:at]
            assert container.device in next(line for line in reversed(above) if "GPU-" in line or "MIG-" in line)
            assert next(line for line in reversed(above) if line.startswith("node-")) == container.node
    assert "2 machines · 3 GPUs · 3 slices · 4 processes" in fleet.axonize("gpus")
    rows = fleet.axonize("requests").splitlines()
    for container in fleet.containers:
        mine = [row for row in rows if container.pod in row]
        assert len(mine) == 2
        assert all(container.device[:8] in row for row in mine)


def test_both_agents_measure_their_own_machine(fleet):
    """Energy and readings are of the GPUs each machine has; nothing of one is at the other."""
    until(lambda: len(energies(fleet)) == 3)
    assert energies(fleet).keys() == {container.gpu for container in fleet.containers}
    assert set(energies(fleet).values()) == {1}


def energies(fleet):
    """Return GPU → how many agents read its energy counter."""
    with urllib.request.urlopen(f"{fleet.collector.client.url}/api/v1/energy?since=5m", timeout=30) as answer:
        return {gpu["gpu_uuid"]: gpu["agents"] for gpu in json.load(answer)["gpus"]}
