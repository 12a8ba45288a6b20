"""What others make of the same spans: rotel, a collector in Rust, and Arize Phoenix, an application with a store.

``make bench BENCH=peers`` installs both into environments of their own. rotel's ClickHouse exporter sends to an endpoint that
takes everything and keeps nothing; ours writes to its spool, which is emptied. What each has promised when it answers:
ours that the spans are on disk, rotel and Phoenix that they are in memory.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import psutil
from bench_table import Row
from receivers import Receivers, cpu_ns, peak_rss_mb, post

from axonize_core.bench.agent_process import running_sink
from axonize_server.local import LocalCollector, free_port
from otlp_bodies import trace_body

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SPANS = 512
BODIES = 40
ROUNDS = 5
ROTEL_TARGET, ROTEL_GZIP_TARGET = 3.0, 2.5
PHOENIX_BODIES, PHOENIX_STORES_S = 20, 60.0
READY_S, IDLE_S, IDLE_SHARE = 90.0, 0.5, 0.02
HOME = Path(sys.prefix, "peers")


def run() -> list[Row]:
    """Return the rows of those peers that are here."""
    if not HOME.exists():
        print(f"bench_peers: skipped, there is no {HOME}: make bench BENCH=peers makes it", file=sys.stderr)
        return []
    rows = []
    for name, rows_of in (("rotel", beside_rotel), ("phoenix", beside_phoenix)):
        if (HOME / name).exists():
            rows += rows_of()
        else:
            print(f"bench_peers: {name} left out, there is no {HOME / name}", file=sys.stderr)
    return rows


def beside_rotel() -> list[Row]:
    """Return what a span costs each in CPU until it is handed on, plain and gzip, in turn; and their memory."""
    bodies = [trace_body(seed, SPANS) for seed in range(BODIES)]
    zipped = [gzip.compress(body, 6) for body in bodies]
    with tempfile.TemporaryDirectory() as directory, Receivers(Path(directory)) as ours, rotel() as (port, theirs):
        both = ((ours.port, ours.pids[0]), (port, theirs))
        for to, _ in both:
            post(to, bodies[:10])
        rounds = [
            [_rate(pid, lambda to=to, sent=sent, how=how: post(to, sent, encoding=how))
             for sent, how in ((bodies, ""), (zipped, "gzip")) for to, pid in both]
            for _ in range(ROUNDS)
        ]  # fmt: skip
        memory = [peak_rss_mb(pid) for _, pid in both]
    return [
        _beside("receiving, plain", "k spans/cpu-s", [(one[0], one[1]) for one in rounds], ROTEL_TARGET),
        _beside("receiving, gzip", "k spans/cpu-s", [(one[2], one[3]) for one in rounds], ROTEL_GZIP_TARGET),
        Row("receiving, most memory", f"{memory[0]:.0f} MB", f"{memory[1]:.0f} MB", "rotel", f"{memory[0] / memory[1]:.2f} x", "(printed)", True),
    ]  # fmt: skip


def _beside(name: str, unit: str, pairs: list[tuple[float, float]], target: float) -> Row:
    ours, theirs = (median(values) for values in zip(*pairs, strict=True))
    ratio = median(one / other for one, other in pairs)
    return Row(
        name=name,
        ours=f"{ours / 1000:.0f} {unit}, on disk",
        peer=f"{theirs / 1000:.0f}",
        peer_name="rotel to ClickHouse's format, in memory",
        ratio=f"{ratio:.2f} x",
        target=f">= {target} x",
        met=ratio >= target,
    )


@contextlib.contextmanager
def rotel() -> Iterator[tuple[int, int]]:
    """Run it with its ClickHouse exporter; give its port and process."""
    python = HOME / "rotel" / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'), sysconfig.get_path('purelib'))"
    libraries, packages = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    port = free_port()
    command = [
        f"{packages}/rotel/rotel-agent", "start", "--exporter", "clickhouse",
        "--otlp-http-endpoint", f"127.0.0.1:{port}", "--otlp-grpc-endpoint", f"127.0.0.1:{free_port()}",
    ]  # fmt: skip
    with running_sink() as endpoint, tempfile.TemporaryFile() as log:
        more = ("--clickhouse-exporter-endpoint", endpoint)
        env = {**os.environ, "LD_LIBRARY_PATH": libraries}
        process = subprocess.Popen([*command, *more], env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _until(lambda: _takes(port), process)
            yield port, process.pid
        finally:
            process.kill()
            process.wait()


def _takes(port: int) -> bool:
    with contextlib.suppress(OSError):
        post(port, [trace_body(0, 1)])
        return True
    return False


def _rate(pid: int, send: Callable[[], None]) -> float:
    """Return the spans per CPU-second, from the first body until the process has nothing to do any more."""
    before = cpu_ns(pid)
    send()
    last = cpu_ns(pid)
    while True:
        time.sleep(IDLE_S)
        now = cpu_ns(pid)
        if now - last < IDLE_SHARE * IDLE_S * 1e9:
            return BODIES * SPANS / (now - before) * 1e9
        last = now


def beside_phoenix() -> list[Row]:
    """Return what each has stored of what it acknowledged after a minute, and after a kill -9 right after the last answer."""
    bodies = [trace_body(1000 + seed, SPANS) for seed in range(PHOENIX_BODIES)]
    acked = len(bodies) * SPANS
    with tempfile.TemporaryDirectory() as directory:
        theirs_s, theirs, theirs_left = _phoenix(Path(directory), bodies, acked)
    with tempfile.TemporaryDirectory() as directory:
        ours_s, ours, ours_left = _ours(Path(directory), bodies, acked)
    rate, their_rate = ours / ours_s, theirs / theirs_s
    return [
        Row("stored, all processes", f"{rate:.0f} spans/s", f"{their_rate:.0f} spans/s", f"Phoenix: {theirs} of {acked} acked in {theirs_s:.0f} s", f"{rate / their_rate:.0f} x", "(printed)", True),
        Row("lost of those acked, kill -9 after the last ack", f"{acked - ours_left} of {acked}", f"{acked - theirs_left}", "Phoenix", "-", "0 of ours", ours_left == acked),
    ]  # fmt: skip


def _ours(directory: Path, bodies: list[bytes], acked: int) -> tuple[float, int, int]:
    """Return seconds until all was stored, spans stored then, and those stored of a second load after a kill."""
    collector = LocalCollector(directory, http_port=free_port(), api_port=free_port())
    port = int(collector.otlp_url.rpartition(":")[2])
    with collector.running():
        began = time.monotonic()
        post(port, bodies)
        _until(lambda: collector.client.health()["store"]["rows"]["spans"] >= acked)
        took_s = time.monotonic() - began
        post(port, bodies)
        supervisor = psutil.Process(collector.pid)
        for process in (supervisor, *supervisor.children()):
            process.kill()
    with collector.running():
        _until(lambda: not collector.client.health()["spool"]["segments"])
        stored = collector.client.health()["store"]["rows"]["spans"]
    return took_s, acked, stored - acked


def _phoenix(directory: Path, bodies: list[bytes], acked: int) -> tuple[float, int, int]:
    """Return the same of Phoenix with its defaults: SQLite, one process."""
    with phoenix(directory) as (port, process):
        began = time.monotonic()
        post(port, bodies)
        while (stored := _stored(directory)) < acked and time.monotonic() - began < PHOENIX_STORES_S:
            time.sleep(0.5)
        took_s = time.monotonic() - began
        while (settled := _stored(directory)) != stored or stored < acked:
            stored = settled
            time.sleep(5)
            if _stored(directory) == settled:
                break
        before = _stored(directory)
        post(port, bodies)
        process.kill()
        process.wait()
    return took_s, min(stored, acked), _stored(directory) - before


@contextlib.contextmanager
def phoenix(directory: Path) -> Iterator[tuple[int, psutil.Popen]]:
    """Run it as ``phoenix serve`` does."""
    port = free_port()
    env = {
        **os.environ,
        "PHOENIX_WORKING_DIR": str(directory),
        "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": str(port),
        "PHOENIX_GRPC_PORT": str(free_port()),
        "PHOENIX_TELEMETRY_ENABLED": "false",
    }
    with (directory / "log").open("wb") as log:
        command = [HOME / "phoenix" / "bin" / "phoenix", "serve"]
        process = psutil.Popen(command, env=env, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _until(lambda: _healthy(port), process)
        yield port, process
    finally:
        for child in process.children(recursive=True) if process.is_running() else ():
            child.kill()
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
        process.wait()


def _healthy(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
        return answer.status == 200
    return False


def _stored(directory: Path) -> int:
    with contextlib.closing(sqlite3.connect(f"file:{directory / 'phoenix.db'}?mode=ro", uri=True)) as database:
        return database.execute("SELECT count(*) FROM spans").fetchone()[0]


def _until(reached: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + READY_S
    while not reached():
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"not reached in {READY_S:.0f} s")
        time.sleep(0.2)
