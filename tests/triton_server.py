"""A real tritonserver out of PyTriton's wheel, with a repository of models and Axonize's agent sending to a capture."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from vllm_server import Surroundings

__all__ = ["Answer", "Server", "backends"]

READY_S = 60.0
END_S = 40.0
NOTICE_S = 3.0
EXIT_S = 10
FORWARD = "(?i)(traceparent|tracestate)"
OTEL = (
    "--trace-config=mode=opentelemetry",
    "--trace-config=level=TIMESTAMPS",
    "--trace-config=rate=1",
    "--trace-config=opentelemetry,bsp_schedule_delay=200",
)
"""Flags of Triton's own OpenTelemetry mode, but for where its spans go."""


def backends(prefix: Path, folder: Path) -> Path:
    """Lay out a backend directory: the Python backend, and beside it the stub for this environment's Python.

    Args:
        prefix: the environment of the models.
        folder: where to; made.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    wheel = _pytriton(prefix)
    python = folder / "python"
    python.mkdir(parents=True)
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        shutil.copy(wheel / "tritonserver" / "backends" / "python" / name, python)
    shutil.copy(wheel / "tritonserver" / "python_backend_stubs" / version / "triton_python_backend_stub", python)
    return folder


def _pytriton(prefix: Path) -> Path:
    return Path(sysconfig.get_path("purelib", vars={"base": str(prefix)}), "pytriton")


class Answer:
    """What the server answered to one request over HTTP."""

    def __init__(self, status: int, body: bytes):
        self.status, self.said = status, json.loads(body or b"{}")

    @property
    def error(self) -> str | None:
        return self.said.get("error")

    @property
    def values(self) -> list[float]:
        return self.said["outputs"][0]["data"]


class Server:
    """A tritonserver on free ports of loopback, from the start of its process to ``close()``.

    Args:
        surroundings: its directories, environment and capture.
        repository: its models.
        flags: more of its flags.
        prefix: the environment of the models; by default this one.
        exit_s: how long it waits for its models to finalize.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        repository: Path,
        flags: tuple[str, ...] = (),
        *,
        prefix: Path | None = None,
        exit_s: int = EXIT_S,
    ):
        self.surroundings, self.capture = surroundings, surroundings.capture
        self.port, self.grpc_port, metrics_port = _free_ports(3)
        wheel, prefix = _pytriton(Path(sys.prefix)), prefix or Path(sys.prefix)
        self.command = [
            str(wheel / "tritonserver" / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={backends(Path(sys.prefix), surroundings.directory / 'backends')}",
            *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
            f"--http-port={self.port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={metrics_port}",
            f"--exit-timeout-secs={exit_s}",
            *flags,
        ]
        libraries = (wheel.parent / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
        env = {
            **surroundings.env,
            "PATH": f"{prefix / 'bin'}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        }
        self.log_path = surroundings.directory / "server.log"
        self.returncode: int | None = None
        self._regions: set[str] = set()
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                env=env,
                cwd=surroundings.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # by which what is left of it is found
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def crashed(self) -> bool:
        """Whether a signal ended it that we did not send; none of our code runs in this process, only in its models'."""
        return self.returncode is None and (self._process.poll() or 0) < 0

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection for ``infer``, to be used by one thread."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def infer(
        self,
        model: str,
        value: float,
        request_id: str = "",
        *,
        headers: dict[str, str] | None = None,
        parameters: dict[str, object] | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> Answer:
        """Ask a model for one value over HTTP, by default over a connection of its own."""
        tensor = {"name": "IN", "shape": [1, 1], "datatype": "FP32", "data": [value]}
        asked = {"id": request_id, "parameters": parameters or {}, "inputs": [tensor]}
        with contextlib.closing(self.connect()) if connection is None else contextlib.nullcontext(connection) as link:
            link.request("POST", f"/v2/models/{model}/infer", json.dumps(asked), headers or {})
            answer = link.getresponse()
            return Answer(answer.status, answer.read())

    def statistics(self, model: str) -> dict[str, int]:
        """Return what Triton counted: ``execution_count`` and ``inference_count`` (successful samples)."""
        return json.loads(self._get(f"/v2/models/{model}/stats")[1])["model_stats"][0]

    def wait_ready(self) -> None:
        """Wait until all models are ready.

        Raises:
            AssertionError: it ended, as it does when a model fails to load, or was not ready in a minute; with its log.
        """
        deadline = time.monotonic() + READY_S
        while self._get("/v2/health/ready")[0] != 200:
            assert self._process.poll() is None, f"the server ended with {self._process.returncode}:\n{self.log}"
            assert time.monotonic() < deadline, f"the server is not ready after {READY_S:.0f} s:\n{self.log}"
            time.sleep(0.05)

    def _get(self, path: str) -> tuple[int, bytes]:
        with contextlib.closing(self.connect()) as link:
            try:
                link.request("GET", path)
                answer = link.getresponse()
                return answer.status, answer.read()
            except OSError:
                return 0, b""

    def stub_pids(self) -> list[int]:
        """Return the processes in which models run."""
        return [p.pid for p in self._members() if p.name().startswith("triton_python")]

    def left_in_shared_memory(self) -> set[str]:
        """Return the files in /dev/shm by which its models, as they were before its end, spoke to it."""
        return {name for name in self._regions if Path("/dev/shm", name).exists()}

    def _members(self) -> list[psutil.Process]:
        """Return all that is alive of this server: its process group, which the agent leaves."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getpgid(process.pid) == self._process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def stop(self) -> int:
        """End it by SIGTERM, and return its exit code once all of its processes are gone."""
        if self.returncode is None:
            self._note_regions()
            self._process.terminate()
            self._wait()
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> int:
        """End it by SIGKILL. Its models notice, but for one that just speaks to it: that waits for ever and is killed."""
        self._note_regions()
        self._process.kill()
        deadline = time.monotonic() + NOTICE_S
        while self._members() and time.monotonic() < deadline:
            time.sleep(0.05)
        self._kill_rest()
        self._wait()
        return self._process.returncode

    def kill_model(self, model: str) -> None:
        """End the processes of a model by SIGKILL."""
        self._note_regions()
        for process in self._members():
            if f"/{model}/" in " ".join(process.cmdline()):
                process.kill()

    def _kill_rest(self) -> None:
        for process in self._members():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def _note_regions(self) -> None:
        for process in self._members():
            with contextlib.suppress(psutil.Error):
                self._regions |= {word for word in process.cmdline() if word.startswith("triton_python_backend_shm")}

    def _wait(self) -> None:
        self.returncode = self._process.wait(END_S)
        deadline = time.monotonic() + END_S
        while self._members():
            assert time.monotonic() < deadline, f"left of the server: {self._members()}"
            time.sleep(0.05)

    def close(self) -> None:
        """Kill whatever is left of it, and remove what that leaves in memory; its agent ends by itself."""
        self._note_regions()
        self._kill_rest()
        self._wait()
        for name in self.left_in_shared_memory():
            Path("/dev/shm", name).unlink(missing_ok=True)
        self.surroundings.end_agents()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
