"""Run where only the wheel is installed: how light it is, and that all that runs beside inference works.

``python tests/bare.py`` looks at the environment it runs in. ``python tests/bare.py --make DIRECTORY WHEEL`` first makes
one; with ``--lowest`` every dependency of the wheel gets the lowest version that it admits.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

MAX_PACKAGES = 25
MAX_MIB = 60.0
HEAVY = {
    "torch",
    "transformers",
    "clickhouse_connect",
    "chdb",
    "starlette",
    "pydantic",
    "rich",
    "grpc",
    "uvicorn",
    "numpy",
}
INFERENCE_SIDE = "axonize_core.recorder, axonize_core.shipper, axonize_core.frames, axonize_core.settings"
CLI = "from axonize_core.cli import main; main()"
# What an inference process does: import, record, ship to an agent that it starts, end.
ENGINE = """
import sys, axonize_hf
from axonize_core.recorder import get_recorder
recorder = get_recorder()
source = recorder.source("transformers", "bare", "tiny", "hf", ("cpu", 0, None))
recorder.emit(2, recorder.next_handle(), (source, recorder.clock(), "bare", None, "text_completion", 1, None))
assert recorder.flush(30), recorder.errors
print(*sys.modules)
sys.stdin.readline()
"""


class Sink(ThreadingHTTPServer):
    """An OTLP endpoint that keeps the names of the spans it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.spans: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Answer(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        if self.path == "/v1/traces":
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                self.server.spans += [span.name for scope in resource.scope_spans for span in scope.spans]  # type: ignore[attr-defined] # a Sink
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    merged = {**os.environ, "AXONIZE_API_URL": "http://127.0.0.1:9", **env}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=merged)


def _size_mib(distribution: metadata.Distribution) -> float:
    paths = (Path(str(distribution.locate_file(file))) for file in distribution.files or ())
    return sum(path.stat().st_size for path in paths if path.suffix != ".pyc" and path.is_file()) / 2**20


def check_weight() -> None:
    """Few packages, little on disk."""
    found = {d.metadata["Name"]: (d.version, _size_mib(d)) for d in metadata.distributions()}
    for name, (version, mib) in sorted(found.items()):
        print(f"  {name:<42} {version:<12} {mib:6.2f} MiB")
    total = sum(mib for _, mib in found.values())
    print(f"{len(found)} packages, {total:.1f} MiB; at most {MAX_PACKAGES} and {MAX_MIB:.0f} MiB")
    if len(found) > MAX_PACKAGES or total > MAX_MIB:
        sys.exit("the wheel without extras has become heavy")


def check_imports() -> None:
    """Importing all that runs beside inference loads nothing heavy."""
    imported = _run("-c", f"import sys, axonize_hf, axonize_core.agent, {INFERENCE_SIDE}; print(*sys.modules)")
    if imported.returncode:
        sys.exit(imported.stderr)
    if heavy := {name.partition(".")[0] for name in imported.stdout.split()} & HEAVY:
        sys.exit(f"a bare installation imports {sorted(heavy)}")


def check_engine(runtime: str) -> None:
    """A process records, its agent runs, exports and answers doctor; the process loaded msgspec and nothing else."""
    sink = Sink()
    env = {
        "AXONIZE_RUNTIME_DIR": runtime,
        "AXONIZE_STATE_DIR": f"{runtime}/state",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{sink.server_port}",
    }
    engine = subprocess.Popen(
        [sys.executable, "-c", ENGINE], env={**os.environ, **env}, stdin=-1, stdout=-1, stderr=-1, text=True
    )
    try:
        assert engine.stdout is not None
        modules = engine.stdout.readline().split()
        known = {*sys.stdlib_module_names, "__main__", "axonize_core", "axonize_hf", "msgspec", "typing_extensions"}
        foreign = {name.partition(".")[0] for name in modules} - known
        if not modules or {name for name in foreign if not name.startswith(("_", "sitecustomize", "coverage"))}:
            sys.exit(f"the inference process loaded {sorted(foreign)}: {engine.communicate('')[1]}")
        doctor = _run("-c", CLI, "doctor", "--json", **env)
        if not any("1 processes" in finding["text"] for finding in json.loads(doctor.stdout)):
            sys.exit(f"no agent serves the process: {doctor.stdout}{doctor.stderr}")
    finally:
        engine.communicate("\n", timeout=30)
    deadline = time.monotonic() + 20
    while list(Path(runtime).glob("*.sock")):
        if time.monotonic() > deadline:
            sys.exit("the agent did not end after its last process")
        time.sleep(0.05)
    sink.shutdown()
    if sink.spans.count("request") != 1:
        sys.exit(f"one request was recorded, exported were {sink.spans}")


def check_commands() -> None:
    """What every installation has works; what needs an extra says which."""
    for command in (("--help",), ("--version",), ("env",), ("plugins",)):
        done = _run("-c", CLI, *command)
        if done.returncode or not done.stdout:
            sys.exit(f"axonize {' '.join(command)}: {done.stdout}{done.stderr}")
    for command in ("collector", "migrate", "demo", "requests"):
        refused = _run("-c", CLI, command)
        if "pip install 'axonize[" not in refused.stderr or "Traceback" in refused.stderr:
            sys.exit(f"axonize {command} does not name the extra: {refused.stdout}{refused.stderr}")


def make(directory: Path, wheel: str, *, lowest: bool) -> Path:
    """Make an environment with the wheel alone and return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", directory], check=True)
    python = directory / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install", "-q"]
    floors = _floors(python, pip, wheel) if lowest else []
    subprocess.run([*pip, *floors, wheel], check=True)
    return python


def _floors(python: Path, pip: list[str | Path], wheel: str) -> list[str]:
    """Return the wheel's own dependencies, pinned to their lowest versions."""
    subprocess.run([*pip, "--no-deps", wheel], check=True)
    show = "from importlib import metadata; print(*metadata.requires('axonize'), sep='\\n')"
    requires = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True).stdout
    pairs = re.findall(r"^([\w-]+)>=([\w.]+)$", requires, re.MULTILINE)
    return [f"{name}=={floor}" for name, floor in pairs]


def main() -> None:
    """Exit with a message at the first thing that is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--make", nargs=2, metavar=("DIRECTORY", "WHEEL"))
    parser.add_argument("--lowest", action="store_true")
    options = parser.parse_args()
    if options.make:
        python = make(Path(options.make[0]), options.make[1], lowest=options.lowest)
        sys.exit(subprocess.run([python, __file__], check=False).returncode)
    check_weight()
    check_imports()
    check_commands()
    with tempfile.TemporaryDirectory() as runtime:
        check_engine(runtime)
    print(
        "bare installation: light; records, agent, export, doctor, env and plugins work; other commands name their extra"
    )


if __name__ == "__main__":
    main()
