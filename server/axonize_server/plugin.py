"""The server part's way into the ``axonize`` command line.

Loaded with every ``axonize`` command, also where only the core is installed: it imports only click.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from axonize_core import hookimpl

__all__ = ["COMMANDS", "axonize_register_commands"]

COMMANDS = {
    "collector": ("axonize_server.commands_operate", "Receive OTLP, store it and answer questions."),
    "migrate": ("axonize_server.commands_operate", "Bring store and registry to this version's schema."),
    "spool": ("axonize_server.commands_spool", "Look into the spool: what is acknowledged and not in the store yet."),
    "requests": ("axonize_server.commands", "List recent requests, newest first."),
    "trace": ("axonize_server.commands", "Show one request as a waterfall."),
    "batches": ("axonize_server.commands", "List engine steps, newest first, and who shared them."),
    "gpus": ("axonize_server.commands_gpus", "Show GPUs, their slices and who holds them, now or at a time."),
    "top": ("axonize_server.commands_gpus", "Watch GPUs, slices and engines: load, requests and tokens per second."),
    "demo": ("axonize_server.commands", "Serve a small model here and show what comes back from the store."),
}
"""Module and summary of each command, so that listing them imports none."""


class LazyCommand(click.Command):
    """Stands for a command until it is asked to run or to explain itself."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Load the real command and let it take over.

        Raises:
            click.ClickException: the server extra is not installed.
        """
        return self._load().make_context(info_name, args, parent, **extra)

    def _load(self) -> click.Command:
        name = str(self.name)
        try:
            module = import_module(COMMANDS[name][0])
        except ModuleNotFoundError as e:
            if (e.name or "").startswith("axonize"):
                raise
            raise click.ClickException(f"axonize {name} needs {e.name}: pip install 'axonize[server,embedded]'") from e
        command = getattr(module, name)
        assert isinstance(command, click.Command)  # noqa: S101  narrows what an import by name gives
        return command


@hookimpl
def axonize_register_commands(cli: click.Group) -> None:
    """Add the server's commands to the group."""
    for name, (_, summary) in COMMANDS.items():
        cli.add_command(LazyCommand(name, help=summary))
