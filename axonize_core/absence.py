"""What a process that finds no agent leaves behind, so that ``axonize doctor`` can say it: one small file.

A process whose agent cannot be started or reached has nobody to tell what it drops. Its shipper writes this after a
while, and at its end; the file goes when an agent is found. Runs on the shipper's thread; never raises.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Absence", "AbsenceNote", "read_absences"]

FIRST_NOTE_S = 5.0
"""An agent takes about a second to start; what is away for less is not worth a file."""
KEPT_S = 86_400.0
_PATTERN = "engine-*.json"


class Absence(msgspec.Struct, frozen=True):
    """A process without an agent: since when (epoch), what waits, what was dropped, and why."""

    pid: int
    since_s: float
    waiting: int
    dropped: int
    reason: str
    ended: bool = False


class AbsenceNote:
    """The note of one process; ``directory`` is the runtime directory, which must exist already."""

    def __init__(self, directory: Path, instance_id: str, pid: int) -> None:
        self._path = directory / f"engine-{pid}-{instance_id[:8]}.json"
        self._pid = pid
        self._since_s: float | None = None
        self._reason = ""
        self._written = False

    def missing(self, reason: str, waiting: int, dropped: int) -> None:
        """Take down that there is still no agent."""
        now = time.time()
        self._since_s = now if self._since_s is None else self._since_s
        self._reason = reason
        if now - self._since_s >= FIRST_NOTE_S:
            self._write(Absence(self._pid, self._since_s, waiting, dropped, reason))

    def found(self) -> None:
        """Take it back: from here on the agent knows what was dropped."""
        self._since_s, self._reason = None, ""
        if self._written:
            self._written = False
            with contextlib.suppress(OSError):
                self._path.unlink()

    def ended(self, waiting: int, dropped: int) -> None:
        """Leave behind what this process lost, if it lost anything."""
        if waiting + dropped:
            reason = self._reason or "the process ended before its agent was there"
            self._write(Absence(self._pid, self._since_s or time.time(), 0, dropped + waiting, reason, ended=True))

    def _write(self, absence: Absence) -> None:
        with contextlib.suppress(OSError):
            self._forget_old_ones()
            part = self._path.with_suffix(".part")
            part.write_bytes(msgspec.json.encode(absence))
            part.rename(self._path)
            self._written = True

    def _forget_old_ones(self) -> None:
        for path in self._path.parent.glob(_PATTERN):
            if time.time() - path.stat().st_mtime > KEPT_S:
                path.unlink(missing_ok=True)


def read_absences(directory: Path) -> list[Absence]:
    """Return what processes left behind there, oldest first; what cannot be read is left out."""
    found = []
    for path in directory.glob(_PATTERN):
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            found.append(msgspec.json.decode(path.read_bytes(), type=Absence))
    return sorted(found, key=lambda absence: absence.since_s)
