"""What a process says of where it runs, in the attributes of its Hello: container, pod, and which GPUs it may see.

Runs in the inference process, on the shipper's thread, once per connection: standard library only. What is not
certain is left out, and ``OTEL_RESOURCE_ATTRIBUTES`` wins over everything here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ENVIRONMENT", "PID_NAMESPACE", "process_identity"]

ENVIRONMENT = "process.environment_variable."
"""OTel's name for one variable of a process."""
PID_NAMESPACE = "process.pid_namespace"
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_MPS_PIPE_DIRECTORY",
    "NVIDIA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
)
_BY_DOWNWARD_API = (
    ("k8s.pod.name", ("K8S_POD_NAME", "POD_NAME", "MY_POD_NAME")),
    ("k8s.namespace.name", ("K8S_NAMESPACE_NAME", "POD_NAMESPACE", "MY_POD_NAMESPACE", "K8S_NAMESPACE")),
    ("k8s.node.name", ("K8S_NODE_NAME", "NODE_NAME", "MY_NODE_NAME")),
    ("k8s.pod.uid", ("K8S_POD_UID", "POD_UID", "MY_POD_UID")),
    ("ai.rank", ("RANK",)),
)
"""Names that the documentation of Kubernetes and OpenTelemetry uses; RANK is what torchrun sets."""
_NAMESPACE_FILE = "var/run/secrets/kubernetes.io/serviceaccount/namespace"
_CONTAINER = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?$")
_DOCKER_MOUNT = re.compile(r"/docker/containers/([0-9a-f]{64})/")
_POD = re.compile(r"kubepods[^/]*/(?:[^/]*/)?(?:kubepods[^/]*-)?pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12})")


def process_identity(env: Mapping[str, str] | None = None, root: Path = Path("/")) -> dict[str, str]:
    """Return what is known; an empty variable is kept, since it means that no GPU may be seen."""
    env = os.environ if env is None else env
    found = {ENVIRONMENT + name: env[name] for name in _VARIABLES if name in env}
    for attribute, names in _BY_DOWNWARD_API:
        value = next((env[name] for name in names if env.get(name)), None)
        if value is not None:
            found[attribute] = value
    for attribute, read in (
        ("k8s.namespace.name", _namespace),
        ("container.id", _container),
        ("k8s.pod.uid", _pod_uid),
        (PID_NAMESPACE, _pid_namespace),
    ):
        value = read(root)
        if value is not None:
            found.setdefault(attribute, value)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _namespace(root: Path) -> str | None:
    return _read(root / _NAMESPACE_FILE).strip() or None


def _container(root: Path) -> str | None:
    """Return the id from the path of the cgroup, or, where the cgroup namespace hides it, from Docker's mounts.

    The sandbox ids that other runtimes show in their mounts are a pod's, not a container's.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        if match := _CONTAINER.search(line):
            return match[1]
    match = _DOCKER_MOUNT.search(_read(root / "proc/self/mountinfo"))
    return match[1] if match else None


def _pod_uid(root: Path) -> str | None:
    match = _POD.search(_read(root / "proc/self/cgroup"))
    return match[1].replace("_", "-") if match else None


def _pid_namespace(root: Path) -> str | None:
    try:
        return str((root / "proc/self/ns/pid").readlink()).removeprefix("pid:[").removesuffix("]")
    except OSError:
        return None
