"""The ``axonize`` command: what every installation has, and what plugins add to it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from axonize_core import __version__
from axonize_core.errors import AxonizeError
from axonize_core.plugins import load_plugins
from axonize_core.settings import Settings, settings_markdown

__all__ = ["cli", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="axonize")
def cli() -> None:
    """Observability for AI inference servers: joins requests with the GPUs that served them.

    \b
    First steps:
      axonize demo                 see it work on this machine
      axonize collector            receive spans and answer questions
      axonize requests             the latest requests
      axonize doctor               what is installed, connected, dropped and refused
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


def main() -> None:
    """Load the plugins' commands and run; our own errors are one line, not a traceback."""
    plugins = load_plugins(defaults=(), groups=("axonize", "axonize.server"))
    plugins.call("axonize_register_commands", cli=cli)
    try:
        cli(prog_name="axonize")
    except AxonizeError as e:
        click.echo(f"axonize: {e}", err=True)
        sys.exit(2)
