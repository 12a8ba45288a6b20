"""The served model as the demo sees it: a process of its own that says how far it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from axonize_core.errors import AxonizeError
from axonize_server.local import log_tail

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import Console

    from axonize_server.local import LocalCollector

__all__ = ["DemoError", "has_gpu", "serve_load"]

_SERVICE = "axonize-demo"


class DemoError(AxonizeError):
    """The demo cannot run, or what it served did not all come back from the store."""


def serve_load(console: Console, collector: LocalCollector, *, requests: int, run_id: str) -> dict[str, Any]:
    """Run the model's process to its end with a progress bar; return the last of what it said.

    Raises:
        DemoError: it failed; the message ends with the tail of its log.
    """
    log = collector.data_dir / "model.log"
    command = [sys.executable, "-m", "axonize_hf.demo", "--requests", str(requests), "--run", run_id]
    environment = _environment(os.environ, collector.otlp_url)
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment, text=True) as process,
    ):
        try:
            assert process.stdout is not None  # noqa: S101  asked for with PIPE
            said = _follow(console, process.stdout, requests)
        except BaseException:
            process.terminate()
            raise
    if process.returncode != 0 or "failed" not in said:
        raise DemoError(f"the model's process ended with exit code {process.returncode}:\n{log_tail(log)}")
    return said


def _follow(console: Console, lines: IO[str], requests: int) -> dict[str, Any]:
    """Show progress until the lines end; return the last facts."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    facts: dict[str, Any] = {}
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("building a small model", total=requests)
        for facts in _facts(lines):
            if "parameters" in facts:
                what = f"serving it ({facts['parameters']:,} parameters, {facts['device']})"
                progress.update(task, description=what)
            progress.update(task, completed=facts.get("served", 0))
    return facts


def _facts(lines: IO[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with suppress(ValueError):  # libraries may print as well
            facts = json.loads(line)
            if isinstance(facts, dict):
                yield facts


def _environment(given: Mapping[str, str], otlp_url: str) -> dict[str, str]:
    """Return the environment of the model's process: our collector, no downloads, a device that says what it is."""
    foreign = ("OTEL_EXPORTER_", "OTEL_RESOURCE_", "AXONIZE_AGENT")
    environment = {name: value for name, value in given.items() if not name.startswith(foreign)}
    if not has_gpu():
        environment.setdefault("AXONIZE_GPU_PROVIDER", "simulated")
    return environment | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp_url,
        "OTEL_SERVICE_NAME": _SERVICE,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def has_gpu() -> bool:
    """Return whether NVML is here and knows a device."""
    import pynvml  # noqa: PLC0415  loads the driver's library

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    try:
        return bool(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return False
    finally:
        pynvml.nvmlShutdown()
