"""The documents against the code: commands, flags, variables, targets and links exist."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import click
import pytest

from axonize_core.cli import cli
from axonize_core.plugins import load_plugins
from axonize_core.settings import SETTINGS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
PROSE = [path for path in DOCUMENTS if path.name != "ARCHITECTURE.md"]
# Read where they are used, not a setting of a process that runs.
OTHER_VARIABLES = {"AXONIZE_API_URL", "AXONIZE_CONFIG", "AXONIZE_TEST_CLICKHOUSE_DSN", "AXONIZE_TEST_POSTGRES_DSN"}

by_name = pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def commands():
    """All commands, as the command line has them."""
    load_plugins(defaults=(), groups=("axonize.server",)).call("axonize_register_commands", cli=cli)
    return cli.commands


def _blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _command_lines(text):
    """Return the ``axonize …`` commands in code blocks and in inline code, without comments and others' commands."""
    typed = [line[2:] for block in _blocks(text, "console") for line in block.splitlines() if line.startswith("$ ")]
    inline = re.findall(r"`(axonize [^`]+)`", text)
    lines = [shlex.split(line, comments=True) for line in [*typed, *inline]]
    return [line[1 : line.index("--") if "--" in line else None] for line in lines if line[:1] == ["axonize"]]


@by_name
def test_every_command_and_flag_shown_exists(path, commands):
    """What a reader copies runs."""
    for name, *arguments in _command_lines(path.read_text()):
        assert name in commands, f"axonize {name}"
        command = commands[name].make_context(name, ["--help"], resilient_parsing=True).command
        while isinstance(command, click.Group) and arguments and not arguments[0].startswith("-"):
            command = command.commands[arguments.pop(0)]
        context = command.make_context(name, ["--help"], resilient_parsing=True)
        known = {flag for option in context.command.params for flag in (*option.opts, *option.secondary_opts)}
        assert {argument for argument in arguments if argument.startswith("--")} <= known, (name, arguments)


def test_every_command_is_documented(commands):
    """A command nobody reads about is not there for them."""
    shown = {line[0] for path in PROSE for line in _command_lines(path.read_text())}
    assert set(commands) <= shown


@by_name
def test_every_variable_named_is_a_setting(path):
    """A misspelt or removed AXONIZE_ variable would be ignored in silence."""
    from axonize_server.settings import Settings

    known = {setting.env for setting in SETTINGS} | {f"AXONIZE_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"\bAXONIZE_[A-Z_]*[A-Z]\b", path.read_text()))
    assert {name for name in named if not name.startswith("AXONIZE_PLUGIN_")} <= known | OTHER_VARIABLES


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path):
    """Relative links name files that exist."""
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text())
    missing = [target for target in targets if "://" not in target and not (path.parent / target).exists()]
    assert not missing


@by_name
def test_every_make_target_shown_exists(path):
    """The Makefile has it."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = path.read_text()
    typed = re.findall(r"^\$ make ([a-z-]+)", text, re.MULTILINE) + re.findall(r"`make ([a-z-]+)", text)
    assert set(typed) <= targets


@by_name
def test_python_blocks_are_python(path):
    """Examples parse, and the names they take from our packages exist."""
    for block in _blocks(path.read_text(), "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "axonize_hf":
                import axonize_hf

                assert hasattr(axonize_hf, node.attr), node.attr


def test_the_index_lists_every_document():
    """Nothing under docs is out of reach."""
    index = (ROOT / "docs/index.md").read_text()
    listed = {(ROOT / "docs" / target).resolve() for target in re.findall(r"\]\(([^)]+)\)", index)}
    assert {path for path in ROOT.glob("docs/**/*.md") if path.name != "index.md"} <= listed


def test_the_readme_fits_two_screens():
    """Whoever opens it sees the whole path at once."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90


def test_help_texts_are_sentences(commands):
    """Each command's summary is one sentence."""
    for command in commands.values():
        assert isinstance(command, click.Command)
        assert (command.help or "").strip().split("\n\n")[0].endswith((".", "refused.")), command.name
