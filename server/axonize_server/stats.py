"""What the collector's processes publish about themselves, for ``/metrics``, ``/api/v1/health`` and doctor.

One small JSON file per process under ``<data-dir>/run``, replaced atomically; a receiver's once a second.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "read_collector",
    "read_stats",
    "read_writer",
    "receivers_alive",
    "write_collector",
    "write_stats",
    "write_writer",
]

_FRESH_NS = 5 * 10**9


def write_stats(data_dir: Path, worker: int, counters: Mapping[str, int]) -> None:
    """Publish one receiver's counters, which count since its process started."""
    _publish(data_dir, f"receiver-{worker}.json", worker=worker, counters=dict(counters))


def write_writer(data_dir: Path, api_port: int) -> None:
    """Publish that this process is the writer, and where its API listens."""
    _publish(data_dir, "writer.json", api_port=api_port)


def write_collector(data_dir: Path, *, http_port: int, restarts: Mapping[str, int]) -> None:
    """Publish the supervisor's own facts."""
    _publish(data_dir, "collector.json", http_port=http_port, restarts=dict(restarts))


def _publish(data_dir: Path, name: str, **facts: Any) -> None:
    run_dir = data_dir / "run"
    path = run_dir / name
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft.write_text(json.dumps({"pid": os.getpid(), "updated_ns": time.time_ns(), **facts}))
        draft.replace(path)
    except OSError:  # a full disk must not end the process; a stale `updated_ns` shows it
        draft.unlink(missing_ok=True)


def read_stats(data_dir: Path) -> list[dict[str, Any]]:
    """What the receivers last published: worker, pid, updated_ns (epoch), counters; by worker.

    Counter names are ``received_bytes.<signal>``, ``acked_requests.<signal>``, ``acked_records.<signal>`` and
    ``refused_requests.<reason>`` and ``rejected_records.<signal>.<reason>``.
    """
    found = [_read(path) for path in (data_dir / "run").glob("receiver-*.json")]
    return sorted(filter(None, found), key=lambda facts: int(facts["worker"]))


def receivers_alive(data_dir: Path) -> int:
    """How many receivers said within the last seconds that they receive, and are still there."""
    fresh = [facts for facts in read_stats(data_dir) if time.time_ns() - int(facts["updated_ns"]) < _FRESH_NS]
    return sum(_is_running(int(facts["pid"])) for facts in fresh)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_writer(data_dir: Path) -> dict[str, Any]:
    """The writer's pid and api_port, or nothing when none has been ready here."""
    return _read(data_dir / "run" / "writer.json")


def read_collector(data_dir: Path) -> dict[str, Any]:
    """The supervisor's pid, http_port and restarts, or nothing when none has been ready here."""
    return _read(data_dir / "run" / "collector.json")


def _read(path: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return facts
