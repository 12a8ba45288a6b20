"""A real tritonserver with the models of the benchmarks; runs in the environment that has it."""

from __future__ import annotations

import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from triton_server import Server

MODELS = Path(__file__).resolve().parent / "bench_triton_models"
FORWARD = ("--http-header-forward-pattern=traceparent", "--grpc-header-forward-pattern=traceparent")
DECOUPLED = "model_transaction_policy { decoupled: True }\n"


class Surroundings:
    """Where a server runs, with an agent that is not its own."""

    capture = None

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.directory = directory
        self.env = {**os.environ, **environment}

    def end_agents(self) -> None:
        """The agent is ended by who started it."""


def add_model(repository: Path, name: str, code: str, *, most: int = 0, more: str = "", **parameters: str) -> None:
    """Put ``bench_triton_models/<code>.py`` into a repository; ``more`` are lines of its configuration."""
    version = repository / name / "1"
    version.mkdir(parents=True)
    shutil.copy(MODELS / f"{code}.py", version / "model.py")
    shutil.copy(MODELS / "naive.py", version)
    dims = "[1]" if most else "[1, 1]"
    texts = "".join(f'parameters {{ key: "{k}" value {{ string_value: "{v}" }} }}\n' for k, v in parameters.items())
    (repository / name / "config.pbtxt").write_text(
        f'name: "{name}"\nbackend: "python"\nmax_batch_size: {most}\n'
        f'input [{{name: "IN" data_type: TYPE_FP32 dims: {dims}}}]\n'
        f'output [{{name: "OUT" data_type: TYPE_STRING dims: {dims}}}]\n'
        f"instance_group [{{kind: KIND_CPU count: 1}}]\n{texts}{more}"
    )


@contextmanager
def running_server(directory: Path, repository: Path, environment: dict[str, str], *flags: str):
    """Run a server with these models, and give it.

    Raises:
        AssertionError: it did not get ready, or a model said something of Axonize; with its log.
    """
    directory.mkdir(exist_ok=True)
    flags = ("--disable-auto-complete-config", "--allow-metrics=false", *FORWARD, *flags)
    server = Server(Surroundings(directory, environment), repository, flags)
    try:
        server.wait_ready()
        yield server
        server.stop()
        assert "axonize: " not in server.log, server.log
    finally:
        server.close()


def say_rows(rows) -> None:
    """Hand the rows to ``bench_triton.py``, which started this process."""
    print("rows: " + json.dumps([list(row) for row in rows]), flush=True)
