"""A scripted two-node fleet through the whole collector: OTLP in, tree, history and rates out, by API and command."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from datetime import datetime, timezone

import pytest

from axonize_core import attributes as names
from axonize_server.client import ApiError
from axonize_server.local import LocalCollector, free_port
from gpu_reports import GIB, S, context_info, full_info, gpu_info, request, samples, slice_info, stable_uuid
from own_spans import as_requests, own_span

MINUTE = 60 * S


class Fleet:
    """Two machines: a sliced GPU and a whole one each; on every slice a container that says cuda:0."""

    def __init__(self, start_ns):
        self.start_ns = start_ns
        self.sliced = {node: gpu_info(node, 0, mig=True) for node in ("node-a", "node-b")}
        self.whole = {node: gpu_info(node, 1) for node in self.sliced}
        self.slices = {
            node: [slice_info(gpu, 1), slice_info(gpu, 2, profile="2g.20gb", size=2)]
            for node, gpu in self.sliced.items()
        }
        self.contexts = {
            node: [
                context_info(found, "same-host-name", 1, pod=f"{node}-chat-{n}", sharing="mig")
                | {"gpu.context.id": f"{node}/chat-{n}/cuda:0", "service.instance.id": stable_uuid(node, n)}
                for n, found in enumerate(slices)
            ]
            for node, slices in self.slices.items()
        }

    def things(self, node):
        return [
            ("gpu", self.sliced[node]),
            ("gpu", self.whole[node]),
            ("compute_resource", full_info(self.whole[node])),
            *(("compute_resource", found) for found in self.slices[node]),
            *(("context", found) for found in self.contexts[node]),
        ]

    def requests(self, now_ns):
        """Reports once a minute from the start until now, and a sample of now."""
        for node in self.sliced:
            for time_ns in range(self.start_ns, now_ns, MINUTE):
                yield request([(layer, found, time_ns, 1) for layer, found in self.things(node)], node=node)
            reading = {"hw.gpu.utilization": 0.5, "hw.gpu.memory.usage": 5 * GIB}
            of_gpus = [(gpu, {**reading, "hw.power": 300.0}) for gpu in (self.sliced[node], self.whole[node])]
            yield samples([*of_gpus, *((found, reading) for found in self.slices[node])], node=node)

    def spans(self, now_ns):
        """A step and a request of each container, as the agent annotates them."""
        for contexts in self.contexts.values():
            for context in contexts:
                on = {names.GPU_COMPUTE_RESOURCE: context["gpu.compute_resource.id"], names.HW_ID: context["hw.id"]}
                counts = {names.BATCH_PREFILL_TOKENS: 24, names.BATCH_DECODE_TOKENS: 600, names.BATCH_SEQ: 1}
                spans = [
                    own_span("batch", now_ns - S, now_ns, {**on, **counts}),
                    own_span("request", now_ns - 2 * S, now_ns, {**on, names.OUTPUT_TOKENS: 600}),
                ]
                resource = {name: context[name] for name in ("service.instance.id", "service.name", "ai.engine")}
                yield from as_requests(spans, {**resource, "gen_ai.request.model": "llama"})


@pytest.fixture(scope="module")
def collector(tmp_path_factory):
    """A collector that received the fleet's reports."""
    made = LocalCollector(tmp_path_factory.mktemp("gpus"), http_port=free_port(), api_port=free_port())
    with made.running():
        empty = axonize(made, "gpus"), axonize(made, "top", "--once")
        now_ns = time.time_ns()
        fleet = Fleet(now_ns - 10 * MINUTE)
        for message in fleet.requests(now_ns):
            post(made, "metrics", message)
        for message in fleet.spans(now_ns):
            post(made, "traces", message)
        made.fleet, made.empty = fleet, empty
        _until(lambda: len(contexts_of(made.client.gpus())) == 4)
        _until(lambda: len(made.client.engines(window="10m")["engines"]) == 4)
        yield made


def post(collector, signal, message):
    asked = urllib.request.Request(
        f"{collector.otlp_url}/v1/{signal}", message.SerializeToString(), {"Content-Type": "application/x-protobuf"}
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        assert answer.status == 200


def axonize(collector, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", "from axonize_core.cli import main; main()", *arguments, "--api", collector.client.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def contexts_of(tree):
    """Return resource → pods."""
    return {
        resource["compute_resource"]: [context["pod"] for context in resource["contexts"]]
        for gpu in tree["gpus"]
        for resource in gpu["compute_resources"]
        if resource["contexts"]
    }


def _until(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_fleet_is_shown_rightly(collector):
    """Two machines of two GPUs each; slices on the sliced ones, in their order, with profile and reading."""
    fleet = collector.fleet
    tree = collector.client.gpus()["gpus"]
    assert [(gpu["node"], gpu["mig_enabled"], len(gpu["compute_resources"])) for gpu in tree] == [
        ("node-a", True, 2),
        ("node-a", False, 1),
        ("node-b", True, 2),
        ("node-b", False, 1),
    ]
    for gpu in tree:
        assert (gpu["reading"]["power_w"], gpu["reading"]["utilization"]) == (300.0, 0.5)
    sliced = tree[0]["compute_resources"]
    assert [found["mig_profile"] for found in sliced] == ["1g.10gb", "2g.20gb"]
    assert [found["reading"]["memory_used_bytes"] for found in sliced] == [5 * GIB, 5 * GIB]
    assert sliced[0]["reading"]["power_w"] is None
    assert [found["compute_resource"] for found in sliced] == [
        found["gpu.compute_resource.id"] for found in fleet.slices["node-a"]
    ]
    assert [gpu["gpu_uuid"] for gpu in collector.client.gpus(node="node-b")["gpus"]] == [
        tree[2]["gpu_uuid"],
        tree[3]["gpu_uuid"],
    ]


def test_containers_that_say_the_same_name_are_told_apart(collector):
    """Four containers say cuda:0, with one host name and one pid; each is on its own slice in every answer."""
    fleet = collector.fleet
    expected = {
        context["gpu.compute_resource.id"]: context for contexts in fleet.contexts.values() for context in contexts
    }
    tree = collector.client.gpus()
    assert contexts_of(tree) == {uuid: [context["k8s.pod.name"]] for uuid, context in expected.items()}
    said = {c["device"] for gpu in tree["gpus"] for found in gpu["compute_resources"] for c in found["contexts"]}
    assert said == {"cuda:0"}
    by_instance = {context["service.instance.id"]: uuid for uuid, context in expected.items()}
    for rows in (collector.client.requests(), collector.client.batches()):
        assert {row["instance_id"]: row["compute_resource"] for row in rows} == by_instance
    engines = collector.client.engines(window="10m")["engines"]
    assert {engine["instance_id"]: engine["compute_resources"] for engine in engines} == {
        instance: [uuid] for instance, uuid in by_instance.items()
    }


def test_rates_of_engines(collector):
    """Requests and tokens per second over the window asked for."""
    found = collector.client.engines(window="10m")
    assert found["window_s"] == 600
    for engine in found["engines"]:
        assert (engine["requests_per_s"], engine["errors_per_s"]) == (1 / 600, 0)
        assert (engine["output_tokens_per_s"], engine["input_tokens_per_s"]) == (1.0, 24 / 600)
        assert (engine["engine"], engine["model"], engine["service"]) == ("vllm", "llama", "chat")


def test_the_commands_show_it(collector):
    """The tree and the live view name each pod below its slice, with its readings and rates."""
    lines = axonize(collector, "gpus").splitlines()
    assert lines[0].startswith("2 machines · 4 GPUs · 4 slices · 4 processes · 1,200 W")
    for node in ("node-a", "node-b"):
        for n, found in enumerate(collector.fleet.slices[node]):
            at = next(at for at, line in enumerate(lines) if found["gpu.compute_resource.id"] in line)
            assert "50 %" in lines[at]
            assert f"cuda:0 prod/{node}-chat-{n} vllm pid 1" in lines[at + 1]
    lines = axonize(collector, "top", "--once", "--window", "10m").splitlines()
    assert " tok/s · over 600 s · 2 machines · 4 GPUs" in lines[0]
    assert [line.split()[-1] for line in lines if "cuda:0" in line] == ["1.00"] * 4


def test_one_slice_at_a_time(collector):
    """Asked for a slice, by the beginning of its uuid, and a time, the pod that had it then is the answer."""
    fleet = collector.fleet
    uuid = fleet.slices["node-b"][1]["gpu.compute_resource.id"]
    then = datetime.fromtimestamp((fleet.start_ns + 5 * MINUTE) / 1e9, tz=timezone.utc)
    for at in ("5m", then.strftime("%Y-%m-%dT%H:%M:%SZ"), then.strftime("%Y-%m-%d %H:%M:%S+00:00"), then.isoformat()):
        found = json.loads(axonize(collector, "gpus", uuid[:14], "--at", at, "--json"))
        assert contexts_of(found) == {uuid: ["node-b-chat-1"]}
    assert contexts_of(collector.client.gpus(at="5m", compute_resource=uuid)) == {uuid: ["node-b-chat-1"]}
    assert axonize(collector, "gpus", "--at", "1h") == "no GPU was known then\n"


def test_a_pod_that_left_is_history(collector):
    """A slice given to another pod has the new one now and the old one at its time."""
    fleet = collector.fleet
    old = fleet.contexts["node-a"][0]
    new = {**old, "k8s.pod.name": "batch-9", "gpu.context.id": "node-a/batch-9/cuda:0", "service.instance.id": "i9"}
    uuid = old["gpu.compute_resource.id"]
    now_ns = time.time_ns()
    post(collector, "metrics", request([("context", old, now_ns, 0), ("context", new, now_ns, 1)], node="node-a"))
    _until(lambda: contexts_of(collector.client.gpus())[uuid] == ["batch-9"])
    assert contexts_of(collector.client.gpus(at="1m"))[uuid] == ["node-a-chat-0"]


def test_without_a_gpu_there_is_a_next_step(collector):
    """Before anything was reported both commands said what to do."""
    for text in collector.empty:
        assert "no GPU has been reported" in text
        assert "axonize doctor" in text


@pytest.mark.parametrize(
    "asked", [{"at": "yesterday"}, {"at": "2026-13-01T00:00:00Z"}, {"at": "2026-01-01T00:00:00"}, {"slice": "x"}]
)
def test_bad_questions(collector, asked):
    """A time without a zone, or none at all, is refused, and so is a parameter nobody knows."""
    with pytest.raises(ApiError) as refused:
        collector.client.gpus(**asked)
    assert refused.value.status == 400


def test_health_counts_what_was_taken_over(collector):
    """The health answer has the registry and its rounds."""
    health = collector.client.health()
    assert health["registry"]["ok"]
    assert health["registry"]["last_error"] is None
    assert health["counters"]["registry"]["synced_things"] >= 12
