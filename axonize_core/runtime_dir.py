"""Where the agent's socket, its lock and its log live: the first place of this user's that can be used.

Standard library only: this runs in the inference process. Choosing makes nothing; engines and ``axonize doctor`` look
in the same places.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from axonize_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MAX_SOCKET_PATH", "choose_runtime_dir", "obstacle_to_socket", "private_directory", "runtime_dirs"]

MAX_SOCKET_PATH = 107
"""Bytes of a Unix socket's path: ``sun_path`` of unix(7) less its end."""
_SOCKET_NAME_BYTES = len("/agent-0000-0123456789ab.sock")


def runtime_dirs(env: Mapping[str, str]) -> list[Path]:
    """Return the places that may serve, best first; only the one that was asked for when one was."""
    if own := env.get("AXONIZE_RUNTIME_DIR"):
        return [_absolute(own)]
    uid = os.getuid()
    # A service has no XDG_RUNTIME_DIR where its user's shell has one, and sudo passes on that of somebody else.
    xdg = [Path(xdg) / "axonize" for xdg in _once(env.get("XDG_RUNTIME_DIR", "")) if _is_ours(xdg)]
    # /dev/shm can be written in a container whose root file system cannot.
    shared = [Path(base) / f"axonize-{uid}" for base in _once("/tmp", env.get("TMPDIR", ""), "/dev/shm")]  # noqa: S108 - owner and mode are checked before use
    return [*xdg, *shared]


def choose_runtime_dir(env: Mapping[str, str]) -> Path:
    """Return the first place that can be used; where there is none, the place that the complaint will name."""
    if env.get("AXONIZE_RUNTIME_DIR"):
        return runtime_dirs(env)[0]
    # os.path, because Path's own methods raise where we may not look.
    there = (place for place in runtime_dirs(env) if os.path.isdir(place.parent))  # noqa: PTH112
    usable = (place for place in there if not obstacle_to_socket(place))
    return next(usable, Path(f"/tmp/axonize-{os.getuid()}"))  # noqa: S108 - cannot be used, as was just found


def obstacle_to_socket(directory: Path) -> str:
    """Say why no socket of ours can be made there; empty when one can, in a directory that may still be to be made."""
    if len(os.fsencode(directory)) + _SOCKET_NAME_BYTES > MAX_SOCKET_PATH:
        return f"a socket's path is at most {MAX_SOCKET_PATH} bytes"
    try:
        status = directory.lstat()
    except FileNotFoundError:
        return "" if _can_be_made(directory) else f"{directory} cannot be made"
    except OSError as e:
        return str(e)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        return f"{directory} does not belong to uid {os.getuid()}"
    return "" if os.access(directory, os.W_OK | os.X_OK) else f"{directory} cannot be written"


def private_directory(path: Path) -> Path:
    """Make or check a directory only we can enter.

    Raises:
        ConfigurationError: it belongs to another user, or is no directory.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise ConfigurationError(
            f"{path} does not belong to uid {os.getuid()}; set AXONIZE_RUNTIME_DIR to a directory of yours"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o700)
    return path


def _once(*bases: str) -> list[str]:
    return [base for base in dict.fromkeys(bases) if base.startswith("/")]


def _absolute(path: str) -> Path:
    """Return the path as seen from here; the agent has another working directory, and ours may be gone."""
    try:
        return Path(path).absolute()
    except FileNotFoundError:
        return Path("/") / path


def _is_ours(directory: str) -> bool:
    try:
        return Path(directory).stat().st_uid == os.getuid()
    except OSError:
        return False


def _can_be_made(directory: Path) -> bool:
    parent = next(parent for parent in directory.parents if os.path.exists(parent))  # noqa: PTH110 - same
    return os.access(parent, os.W_OK | os.X_OK)
