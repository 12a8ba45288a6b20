"""What each receiver publishes about itself for the writer's ``/metrics`` and ``/api/v1/health``.

One small JSON file per receiver under ``<data-dir>/run``, replaced atomically about once a second.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["read_stats", "write_stats"]


def write_stats(data_dir: Path, worker: int, counters: Mapping[str, int]) -> None:
    """Publish one receiver's counters, which count since its process started."""
    run_dir = data_dir / "run"
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    facts = {"worker": worker, "pid": os.getpid(), "updated_ns": time.time_ns(), "counters": dict(counters)}
    path = run_dir / f"receiver-{worker}.json"
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        draft.write_text(json.dumps(facts))
        draft.replace(path)
    except OSError:  # a full disk must not end the receiver; a stale `updated_ns` shows it
        draft.unlink(missing_ok=True)


def read_stats(data_dir: Path) -> list[dict[str, Any]]:
    """What the receivers last published: worker, pid, updated_ns (epoch), counters; by worker.

    Counter names are ``received_bytes.<signal>``, ``acked_requests.<signal>``, ``acked_records.<signal>`` and
    ``refused_requests.<reason>``.
    """
    found = []
    for path in sorted((data_dir / "run").glob("receiver-*.json")):
        try:
            found.append(json.loads(path.read_text()))
        except (FileNotFoundError, ValueError):
            continue
    return sorted(found, key=lambda facts: int(facts["worker"]))
