"""``axonize triton``: recording models without a word in their code, in one Python environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from axonize_core import hookimpl
from axonize_triton.pitfalls import environment_pitfalls

__all__ = ["axonize_register_commands"]

PTH = "axonize_triton.pth"
_LINE = "import os; os.environ.get('AXONIZE_TRITON') and __import__('axonize_triton.boot').boot.install()\n"
_PITFALLS = """
import sys
from pathlib import Path
from axonize_triton.pitfalls import environment_pitfalls
print(*environment_pitfalls(Path(sys.argv[1]) if sys.argv[1] else None), sep=chr(10))
"""


@hookimpl
def axonize_register_commands(cli: click.Group) -> None:
    """Add ``axonize triton``."""
    cli.add_command(triton)


@click.group()
def triton() -> None:
    r"""Record models of Triton's Python backend without changing their code.

    \b
    axonize triton enable                   in the Python environment that the models use
    AXONIZE_TRITON=1 tritonserver ...       every Python model of this server is recorded
    axonize triton status                   what is enabled, and what will not work
    """


_python = click.option(
    "--python",
    "python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The Python of the models' environment; by default the one that runs axonize.",
)


@triton.command()
@_python
def enable(python: Path | None) -> None:
    """Let models of this Python environment be recorded where AXONIZE_TRITON=1 is set.

    Writes one line into the environment's site-packages, which does nothing in any other process.
    """
    path = _site_packages(python) / PTH
    _check_importable(python)
    try:
        path.write_text(_LINE)
    except OSError as e:
        raise click.ClickException(f"cannot write {path}: {e.strerror}") from e
    click.echo(f"wrote {path}")
    click.echo("next: AXONIZE_TRITON=1 tritonserver ...")


@triton.command()
@_python
def disable(python: Path | None) -> None:
    """Take back what enable did."""
    path = _site_packages(python) / PTH
    existed = path.exists()
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        raise click.ClickException(f"cannot remove {path}: {e.strerror}") from e
    click.echo(f"removed {path}" if existed else f"{path} was not there")


@triton.command()
@_python
@click.option("--stub", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="triton_python_backend_stub")
def status(python: Path | None, stub: Path | None) -> None:
    """Say whether models of this environment are recorded, and what in it will not work with Triton."""
    path = _site_packages(python) / PTH
    click.echo(f"enabled by {path}" if path.exists() else f"not enabled ({path} is not there): axonize triton enable")
    for pitfall in _pitfalls(python, stub):
        click.echo(f"!! {pitfall}")


def _site_packages(python: Path | None) -> Path:
    return Path(_ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))"))


def _check_importable(python: Path | None) -> None:
    if (
        python is not None
        and _ask(python, "import importlib.util as u; print(bool(u.find_spec('axonize_triton')))") != "True"
    ):
        raise click.ClickException(f"axonize is not installed there: {python} -m pip install 'axonize[triton]'")


def _pitfalls(python: Path | None, stub: Path | None) -> list[str]:
    if python is None:
        return environment_pitfalls(stub)
    return [line for line in _ask(python, _PITFALLS, str(stub or "")).splitlines() if line]


def _ask(python: Path | None, program: str, *arguments: str) -> str:
    command = [str(python or sys.executable), "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise click.ClickException(f"{command[0]} failed: {said[-1] if said else f'exit code {done.returncode}'}")
    return done.stdout.strip()
