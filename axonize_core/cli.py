"""The ``axonize`` command: what every installation has, and what plugins add to it."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from copy import copy
from pathlib import Path
from typing import Any

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
      axonize run -- vllm serve M  serve a model, recorded
      axonize collector            receive spans and answer questions
      axonize requests             the latest requests
      axonize doctor               what is installed, connected, dropped and refused
      axonize plugins              which plugins take part, and what they cost
      axonize bench overhead       what it costs on this machine
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


@cli.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(context: click.Context, command: tuple[str, ...]) -> None:
    """Run a command with Axonize switched on in the engines it starts.

    For engines that load Axonize by themselves, such as vLLM: sets AXONIZE_ENABLED=1, adds axonize to VLLM_PLUGINS
    where that is set, and becomes the command: pid, signals and exit code are the command's own.

    \b
    Examples:
      axonize run -- vllm serve Qwen/Qwen3-0.6B --port 8000
      axonize run -- python offline.py    with vllm.LLM(...) in it
    """  # noqa: D301 - click wants the control character itself
    from axonize_core.run_command import CommandError, asking_environment, replace_process  # noqa: PLC0415 - only here

    asking, said = asking_environment(os.environ)
    if switch := Settings.from_env().disabled_by:
        said.append(f"everything is switched off, by {switch}: nothing will be recorded")
    for line in said:
        click.echo(f"axonize: {line}", err=True)
    try:
        replace_process(command, asking)
    except CommandError as e:
        click.echo(f"axonize: {e}", err=True)
        context.exit(e.exit_code)


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


@cli.group()
def bench() -> None:
    """Measure on this machine what Axonize costs."""


@bench.command()
@click.option("--engine", help="Integration to measure with, or synthetic [default: the first that is installed].")
@click.option("--model", help="Model to measure with [default: a small one, made on the spot].")
@click.option(
    "--seconds", default=120, show_default=True, type=click.IntRange(5), help="About how long to measure, at most."
)
@click.option("--rounds", type=click.IntRange(3), help="How many rounds instead, at most; each takes about a second.")
@click.option("--precision", default=0.5, show_default=True, help="End when the interval is ± so many percent wide.")
@click.option("--pin/--no-pin", default=True, show_default=True, help="Keep the measured process on one core.")
@click.option("--endpoint", help="OTLP endpoint to export to [default: a local one that keeps nothing].")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the report to this file as well."
)
def overhead(
    seconds: int, rounds: int | None, precision: float, as_json: bool, output: Path | None, **given: Any
) -> None:
    """Compare tokens per second with recording on and off.

    The same work is done in short segments, on and off in turns, with a control that compares off with off. What is
    reported holds for this machine, model and load, and is best measured while nothing else runs.
    """
    from axonize_core.bench.overhead import OverheadOptions, measure_overhead  # noqa: PLC0415 - starts processes
    from axonize_core.bench.overhead_report import overhead_markdown  # noqa: PLC0415 - same

    given["precision"] = precision / 100
    options = OverheadOptions(rounds=rounds, **given) if rounds else OverheadOptions.lasting(seconds, **given)
    with click.progressbar(length=options.rounds, label="measuring", file=sys.stderr) as bar:
        report = measure_overhead(options, lambda done, _: bar.update(done - bar.pos))
    text = json.dumps(report, indent=2) + "\n" if as_json else overhead_markdown(report, _command_line())
    if output is not None:
        output.write_text(text, encoding="utf-8")
    click.echo(text, nl=False)


def _command_line() -> str:
    return shlex.join(["axonize", *sys.argv[1:]])


def _with_plugins() -> _Commands:
    """Return the commands and those of the installed plugins; plugins that fail are named in one line."""
    commands = copy(cli)
    commands.commands = dict(cli.commands)
    # What is wrong is said below, without a traceback for each command somebody types.
    logging.getLogger("axonize_core.plugins").addHandler(logging.NullHandler())
    ours = load_plugins((), defaults=(), groups=BUILT_IN_GROUPS)
    ours.call("axonize_register_commands", cli=commands)
    commands.own = frozenset(commands.commands)
    theirs = load_plugins(wanted_plugins(os.environ), defaults=())
    theirs.call("axonize_register_commands", cli=commands)
    records = (*ours.records.values(), *theirs.records.values())
    if failing := sorted(record.name for record in records if record.is_missing() or record.failures):
        click.echo(f"axonize: these plugins do not work: {', '.join(failing)}; see axonize plugins", err=True)
    return commands


def main() -> None:
    """Load the plugins' commands and run; our own errors are one line, not a traceback."""
    commands = _with_plugins()
    try:
        commands(prog_name="axonize")
    except AxonizeError as e:
        click.echo(f"axonize: {e}", err=True)
        sys.exit(2)
