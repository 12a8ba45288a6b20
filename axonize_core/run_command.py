"""What ``axonize run`` does: the command it is given, in this process, with Axonize asked for."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, NoReturn

from axonize_core.errors import AxonizeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["CommandError", "asking_environment", "replace_process"]

_ALLOW_LISTS = ("VLLM_PLUGINS",)
"""Variables of engines that, where they are set, name the plugins that may be loaded, between commas, no spaces."""
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
"""What a Python process ignores would stay ignored in the command."""


class CommandError(AxonizeError):
    """The command cannot be started; ``exit_code`` is what a shell would say."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def asking_environment(env: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the environment in which engines load Axonize by themselves, and what was changed that is worth a line."""
    asking, said = {**env, "AXONIZE_ENABLED": "1"}, []
    for name in _ALLOW_LISTS:
        allowed = env.get(name)
        if allowed is not None and "axonize" not in allowed.split(","):
            asking[name] = f"{allowed},axonize" if allowed else "axonize"
            said.append(f"{name}={allowed!r} would keep Axonize out; running with {name}={asking[name]}")
    return asking, said


def replace_process(command: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Become the command: same pid, same signals, its own exit code.

    Raises:
        CommandError: it is not there, or is no program.
    """
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), dict(env))  # noqa: S606 - what the user typed
    except FileNotFoundError as e:
        raise CommandError(f"there is no command {command[0]!r}; is it installed, and on PATH?", 127) from e
    except OSError as e:
        raise CommandError(f"{command[0]!r} cannot be run: {e.strerror}", 126) from e
