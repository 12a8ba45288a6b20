"""Where an agent's disk queue lies, and that no two agents share one.

``<state dir>/queue/<key>.<slot>``: the key is a hash of where and as whom the agent exports, never of versions, so an
upgrade keeps its queue. An agent locks the first free slot, and takes over what dead agents of the same key left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from axonize_core.errors import ConfigurationError
from axonize_core.export.segment import SUFFIX
from axonize_core.runtime_dir import private_directory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Leftover", "QueueDirectory", "leftovers"]

SLOTS = 64
_LOCK, _ABOUT = "lock", "about.json"


class Leftover(NamedTuple):
    """Segments that no running agent holds; ``about`` says where they were to go."""

    path: Path
    segments: int
    file_bytes: int
    about: Mapping[str, Any]


class QueueDirectory:
    """A locked directory. The lock is the kernel's: it ends with the process, however that ends.

    Raises:
        OSError: there is no place to write, or no free slot.
        ConfigurationError: the directory is somebody else's.
    """

    def __init__(self, state_dir: Path, key: str, about: Mapping[str, Any]) -> None:
        self._root = _root(state_dir)
        self._key = key
        self._lock_fd = -1
        self.path = self._claim()
        with contextlib.suppress(OSError):  # a full disk must not keep us from sending what lies on it
            if not (self.path / _ABOUT).exists():
                (self.path / _ABOUT).write_text(json.dumps(about))
        self.adopted_segments = self._adopt()
        self._sweep()

    def release(self) -> None:
        """Unlock; the directory goes when nothing waits in it."""
        with contextlib.suppress(OSError):
            _remove(self.path)
        os.close(self._lock_fd)

    def _claim(self) -> Path:
        for slot in range(SLOTS):
            path = self._root / f"{self._key}.{slot}"
            if (lock_fd := _lock(path)) is not None:
                self._lock_fd = lock_fd
                return path
        raise OSError(f"{SLOTS} agents hold queues below {self._root}")

    def _adopt(self) -> int:
        """Move the segments of dead agents here; their names keep them in order."""
        count = 0
        for other in sorted(self._root.glob(f"{self._key}.*")):
            if other == self.path or (lock_fd := _lock(other)) is None:
                continue
            with contextlib.suppress(OSError):
                for segment in _segments(other):
                    target = self.path / segment.parent.name
                    target.mkdir(mode=0o700, exist_ok=True)
                    segment.rename(target / segment.name)
                    count += 1
                _remove(other)
            os.close(lock_fd)
        return count

    def _sweep(self) -> None:
        """Remove what killed agents of any settings left empty."""
        for other in self._root.iterdir():
            with contextlib.suppress(OSError):
                if other == self.path or any(s.stat().st_size for s in _segments(other)):
                    continue
                if (lock_fd := _lock(other)) is not None:
                    try:
                        _remove(other)
                    finally:
                        os.close(lock_fd)


def leftovers(state_dir: Path) -> list[Leftover]:
    """Return the queues that wait without an agent, whatever their settings; nothing is changed."""
    try:
        paths = sorted((state_dir / "queue").iterdir())
    except OSError:
        return []  # there is none, or it is not ours to look into
    found = []
    for path in paths:
        segments = [s for s in _segments(path) if s.stat().st_size]
        if segments and not _is_locked(path):
            about: dict[str, Any] = {}
            with contextlib.suppress(OSError, ValueError):
                about = json.loads((path / _ABOUT).read_text())
            found.append(Leftover(path, len(segments), sum(s.stat().st_size for s in segments), about))
    return found


def _root(state_dir: Path) -> Path:
    try:
        private_directory(state_dir)
        return private_directory(state_dir / "queue")
    except ConfigurationError as e:
        raise ConfigurationError(f"{state_dir} is not ours; set AXONIZE_STATE_DIR to a directory of yours") from e


def _segments(path: Path) -> list[Path]:
    return sorted(path.glob(f"*/*{SUFFIX}"))


def _lock(path: Path) -> int | None:
    """Make the directory and lock it; None when another process holds it."""
    path.mkdir(mode=0o700, exist_ok=True)
    lock_fd = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock_fd)
        return None
    if not os.fstat(lock_fd).st_nlink:  # its last owner removed it between our open and our lock
        os.close(lock_fd)
        return _lock(path)
    return lock_fd


def _is_locked(path: Path) -> bool:
    try:
        lock_fd = os.open(path / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock_fd)
    return False


def _remove(path: Path) -> None:
    """Delete a queue with nothing to send; files of other versions keep it in place.

    Raises:
        OSError: there was something in it.
    """
    for segment in _segments(path):
        if segment.stat().st_size:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        segment.unlink()
    for signal in path.iterdir():
        if signal.is_dir():
            signal.rmdir()
    for name in (_ABOUT, _LOCK):
        (path / name).unlink(missing_ok=True)
    path.rmdir()
