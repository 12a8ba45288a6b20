"""The server part's way into the ``axonize`` command line.

Loaded with every ``axonize`` command, also where only the core is installed: it imports only click.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from axonize_core import hookimpl

__all__ = ["SUMMARIES", "axonize_register_commands"]

SUMMARIES = {
    "requests": "List recent requests.",
    "trace": "Show one request as a waterfall.",
    "batches": "List engine steps and who shared them.",
}


class LazyCommand(click.Command):
    """Stands for a command of ``axonize_server.commands`` until it is asked to run or to explain itself."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Load the real command and let it take over.

        Raises:
            click.ClickException: the server extra is not installed.
        """
        return self._load().make_context(info_name, args, parent, **extra)

    def _load(self) -> click.Command:
        try:
            commands = import_module("axonize_server.commands")
        except ModuleNotFoundError as e:
            if (e.name or "").partition(".")[0] in {"axonize_server", "axonize_core"}:
                raise
            raise click.ClickException(
                f"axonize {self.name} needs {e.name}: pip install 'axonize[server,embedded]'"
            ) from e
        command = commands.COMMANDS[self.name]
        assert isinstance(command, click.Command)  # noqa: S101  narrows a dynamic import
        return command


@hookimpl
def axonize_register_commands(cli: click.Group) -> None:
    """Add the server's commands to the group."""
    for name, summary in SUMMARIES.items():
        cli.add_command(LazyCommand(name, help=summary))
