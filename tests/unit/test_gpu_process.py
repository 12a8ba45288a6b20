"""What a process says of where it runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from axonize_core.gpu.process import ENVIRONMENT, PID_NAMESPACE, process_identity

ID = "3f" * 32
UID = "11112222-3333-4444-5555-666677778888"
SLICE = f"burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}"


@pytest.fixture
def root(tmp_path):
    """A file system with nothing of interest in /proc."""
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("cgroup", "container", "pod"),
    [
        ("0::/\n", None, None),
        (f"12:cpu:/docker/{ID}\n", ID, None),
        (f"0::/system.slice/docker-{ID}.scope\n", ID, None),
        (f"1:cpu:/kubepods/burstable/pod{UID}/{ID}\n", ID, UID),
        (f"0::/kubepods.slice/kubepods-{SLICE}.slice/cri-containerd-{ID}.scope\n", ID, UID),
        ("0::/user.slice/user-1000.slice/session-2.scope\n", None, None),
    ],
)
def test_container_and_pod_come_from_the_cgroup(root, cgroup, container, pod):
    """In the forms of Docker and Kubernetes, cgroup v1 and v2."""
    (root / "proc/self/cgroup").write_text(cgroup)
    found = process_identity({}, root)
    assert found.get("container.id") == container
    assert found.get("k8s.pod.uid") == pod


def test_docker_tells_in_its_mounts_what_the_cgroup_hides(root):
    """The sandbox of a pod, which other runtimes mount from, is not taken for a container."""
    mounts = root / "proc/self/mountinfo"
    mounts.write_text(f"1 2 0:3 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw - ext4 x rw\n")
    assert process_identity({}, root)["container.id"] == ID
    mounts.write_text(f"1 2 0:3 /var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/{ID}/hostname /etc/hostname\n")
    assert "container.id" not in process_identity({}, root)


def test_kubernetes_tells_by_downward_api_and_service_account(root):
    """Environment first, then the file every pod has."""
    secrets = root / "var/run/secrets/kubernetes.io/serviceaccount"
    secrets.mkdir(parents=True)
    (secrets / "namespace").write_text("serving\n")
    found = process_identity({"POD_NAME": "llm-0", "NODE_NAME": "n1", "RANK": "3"}, root)
    assert found["k8s.pod.name"] == "llm-0"
    assert found["k8s.node.name"] == "n1"
    assert found["k8s.namespace.name"] == "serving"
    assert found["ai.rank"] == "3"
    assert process_identity({"POD_NAMESPACE": "own"}, root)["k8s.namespace.name"] == "own"


def test_an_empty_list_of_devices_is_not_an_unset_one(root):
    """Empty means that no GPU may be seen; other variables are nobody's business."""
    key = f"{ENVIRONMENT}CUDA_VISIBLE_DEVICES"
    assert process_identity({"CUDA_VISIBLE_DEVICES": "", "SECRET": "x"}, root) == {key: ""}
    assert process_identity({"POD_NAME": ""}, root) == {}


def test_this_process_has_a_namespace_of_pids():
    """As the kernel numbers it."""
    assert process_identity({})[PID_NAMESPACE] == str(Path("/proc/self/ns/pid").readlink())[5:-1]


def test_it_stays_out_of_what_inference_processes_must_not_load():
    """Standard library only."""
    code = "import axonize_core.gpu.process, sys; print([m for m in ('pynvml','msgspec','pluggy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
