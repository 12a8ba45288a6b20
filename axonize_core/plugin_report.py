"""What ``axonize plugins`` says: every plugin here, and what each costs the agents that run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from axonize_core.doctor import agent_sockets, agent_status
from axonize_core.errors import ConfigurationError
from axonize_core.frames import FrameError
from axonize_core.plugin_record import DISABLED, NOT_INSTALLED
from axonize_core.plugins import BUILT_IN_GROUPS, load_plugins

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from axonize_core.settings import Settings

__all__ = ["plugin_report", "print_plugins"]

_UNKNOWN = "–"


def plugin_report(settings: Settings) -> dict[str, Any]:
    """Load the plugins as an agent would, ask the running agents about theirs, and return both as JSON values."""
    found = load_plugins(settings.load_plugins, groups=("axonize", *BUILT_IN_GROUPS))
    here = [record.facts() for _, record in sorted(found.records.items())]
    agents = list(_agents(settings))
    everywhere = [*here, *(plugin for agent in agents for plugin in agent["plugins"])]
    problems = {
        f"{p['name']} {p['reason']}" for p in everywhere if p["state"] in (DISABLED, NOT_INSTALLED) or p["failures"]
    }
    problems |= {f"agent {agent['socket'] or ''} {agent['error']}" for agent in agents if agent["error"]}
    return {"plugins": here, "agents": agents, "problems": sorted(problems)}


def _agents(settings: Settings) -> Iterator[dict[str, Any]]:
    try:
        paths = agent_sockets(settings)
    except ConfigurationError as e:
        yield {"socket": None, "pid": None, "plugins": [], "error": f"cannot be asked: {e}"}
        return
    for path in paths:
        try:
            facts = agent_status(path)
        except (OSError, FrameError) as e:
            yield {"socket": str(path), "pid": None, "plugins": [], "error": f"does not answer: {e}"}
        else:
            # An agent of an older version does not say.
            plugins = facts.get("plugin_records", [])
            yield {"socket": str(path), "pid": facts["pid"], "plugins": plugins, "error": None}


def print_plugins(report: dict[str, Any]) -> None:
    """Print the report as aligned text; what needs attention comes last, in red."""
    rows = [(p["name"], _origin(p), p["state"], _hooks(p["hooks"])) for p in report["plugins"]]
    _print_table(("plugin", "from", "state", "hooks"), rows)
    for agent in report["agents"]:
        click.echo(f"\nagent {agent['pid'] or _UNKNOWN} at {agent['socket'] or _UNKNOWN}")
        _print_table(
            ("plugin", "state", "calls", "failures", "own time", "slowest call", "over 100 ms"),
            [_costs(plugin) for plugin in agent["plugins"]],
        )
    if not report["agents"]:
        click.echo("\nNo agent runs; the first instrumented process starts one.")
    for problem in report["problems"]:
        click.echo(f"{click.style('!!', fg='red')} {problem}")


def _costs(plugin: dict[str, Any]) -> tuple[str, ...]:
    times = (f"{plugin['busy_ms']:.1f} ms", f"{plugin['slowest_ms']:.1f} ms")
    counts = (str(plugin["calls"]), str(plugin["failures"]))
    return (plugin["name"], plugin["state"], *counts, *times, str(plugin["slow_calls"]))


def _origin(plugin: dict[str, Any]) -> str:
    return f"{plugin['distribution']} {plugin['version']}" if plugin["distribution"] else _UNKNOWN


def _hooks(hooks: list[str]) -> str:
    return ", ".join(hook.removeprefix("axonize_") for hook in hooks) or _UNKNOWN


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if not rows:
        click.echo("  none")
        return
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        click.echo(click.style(line, dim=True) if row is head else line)
