"""The ``axonize`` command: what every installation has, and what plugins add to it."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import click

from axonize_core import __version__
from axonize_core.errors import AxonizeError, ConfigurationError
from axonize_core.plugins import BUILT_IN_GROUPS, load_plugins
from axonize_core.settings import Settings, settings_markdown, wanted_plugins

__all__ = ["cli", "main"]


class _Commands(click.Group):
    """The commands; plugins may add to them, but not take the place of ours."""

    own: frozenset[str] = frozenset()

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command.

        Raises:
            ConfigurationError: it has the name of one of ours.
        """
        if (name or cmd.name) in self.own:
            raise ConfigurationError(f"{name or cmd.name!r} is a command of axonize itself; choose another name")
        super().add_command(cmd, name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="axonize")
def cli() -> None:
    """Observability for AI inference servers: joins requests with the GPUs that served them.

    \b
    First steps:
      axonize demo                 see it work on this machine
      axonize collector            receive spans and answer questions
      axonize requests             the latest requests
      axonize doctor               what is installed, connected, dropped and refused
      axonize plugins              which plugins take part, and what they cost
    """  # noqa: D301 - click wants the control character itself


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print facts as one JSON object.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Say what is installed, supported, connected, dropped and refused.

    Exits with 1 when something needs attention.
    """
    from axonize_core.doctor import examine, print_facts, print_json  # noqa: PLC0415 - imports every framework's metadata

    findings = examine(Settings.from_env())
    (print_json if as_json else print_facts)(findings)
    context.exit(1 if any(f.level == "problem" for f in findings) else 0)


@cli.command()
@click.option("--socket", type=click.Path(path_type=Path), default=Path("/run/axonize/agent.sock"), show_default=True)
def agent(socket: Path) -> None:
    """Run a node agent (DaemonSet, systemd unit, sidecar).

    Inference processes join it with AXONIZE_AGENT=unix:///run/axonize/agent.sock.
    """
    from axonize_core.agent import run  # noqa: PLC0415 - loads OpenTelemetry

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    run(socket.absolute(), Settings.from_env(), shared=False)


@cli.command()
def env() -> None:
    """List the environment variables of everything that runs beside inference, with defaults."""
    click.echo(settings_markdown(), nl=False)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print facts as one JSON object.")
@click.pass_context
def plugins(context: click.Context, as_json: bool) -> None:
    """Say which plugins there are, which take part, and what they cost the running agents.

    Exits with 1 when one is disabled or missing.
    """
    from axonize_core.plugin_report import plugin_report, print_plugins  # noqa: PLC0415 - loads every plugin

    report = plugin_report(Settings.from_env())
    click.echo(json.dumps(report, indent=2, default=str)) if as_json else print_plugins(report)
    context.exit(1 if report["problems"] else 0)


def _load_commands() -> None:
    """Add the commands of the installed plugins; those that fail are named in one line, and the others work."""
    # What is wrong is said below, without a traceback for each command somebody types.
    logging.getLogger("axonize_core.plugins").addHandler(logging.NullHandler())
    ours = load_plugins((), defaults=(), groups=BUILT_IN_GROUPS)
    ours.call("axonize_register_commands", cli=cli)
    _Commands.own = frozenset(cli.commands)
    theirs = load_plugins(wanted_plugins(os.environ), defaults=())
    theirs.call("axonize_register_commands", cli=cli)
    records = (*ours.records.values(), *theirs.records.values())
    if failing := sorted(record.name for record in records if record.is_missing() or record.failures):
        click.echo(f"axonize: these plugins do not work: {', '.join(failing)}; see axonize plugins", err=True)


def main() -> None:
    """Load the plugins' commands and run; our own errors are one line, not a traceback."""
    _load_commands()
    try:
        cli(prog_name="axonize")
    except AxonizeError as e:
        click.echo(f"axonize: {e}", err=True)
        sys.exit(2)
