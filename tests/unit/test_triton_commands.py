"""``axonize triton``: what it writes, takes back and says, in this environment and in another."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from axonize_core.cli import main
from axonize_triton import commands


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Where the line would go."""
    monkeypatch.setattr(commands, "_site_packages", lambda python: tmp_path)
    return tmp_path


@pytest.fixture
def run():
    """Run ``axonize triton …`` in this process."""

    def run_it(*args, code=0):
        result = CliRunner().invoke(commands.triton, args)
        assert result.exit_code == code, result.output
        return result.output

    return run_it


def script(path, text):
    """Return a program that stands for another Python."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_it_is_a_command_of_axonize(monkeypatch, capsys):
    """Found by its entry point."""
    monkeypatch.setattr(sys, "argv", ["axonize", "triton", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "axonize triton enable" in capsys.readouterr().out


def test_enable_and_disable(run, site):
    """One line, which is taken back; both may be done twice."""
    path = site / "axonize_triton.pth"
    for _ in range(2):
        assert f"wrote {path}" in run("enable")
        assert len(path.read_text().splitlines()) == 1
    assert f"enabled by {path}" in run("status")
    assert run("disable") == f"removed {path}\n"
    assert run("disable") == f"{path} was not there\n"
    assert not path.exists()
    assert f"not enabled ({path} is not there): axonize triton enable" in run("status")


@pytest.mark.parametrize(("asked", "expected"), [("1", "asked"), ("", "silent"), (None, "silent")])
def test_what_the_line_does(run, site, asked, expected):
    """Where it is not asked for, not even our module is imported; every Python with a problem would say so."""
    run("enable")
    code = "import site, sys; site.addsitedir(sys.argv[1]); print('asked' if 'axonize_triton' in sys.modules else 'silent')"
    env = {"PATH": "/usr/bin"} | ({} if asked is None else {"AXONIZE_TRITON": asked})
    done = subprocess.run([sys.executable, "-c", code, str(site)], env=env, capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == (expected, "")


def test_another_python(run, tmp_path):
    """Is asked where its packages are, and whether it has Axonize."""
    answers = f'case "$2" in *purelib*) echo {tmp_path};; *find_spec*) echo True;; *) echo "a pitfall of $3";; esac'
    other, stub = script(tmp_path / "python", answers), script(tmp_path / "stub", "")
    assert f"wrote {tmp_path}" in run("enable", "--python", other)
    assert (tmp_path / "axonize_triton.pth").exists()
    assert f"!! a pitfall of {stub}" in run("status", "--python", other, "--stub", stub)
    assert "removed" in run("disable", "--python", other)


def test_the_same_python_by_its_name(run):
    """What is said of it is what it says of itself."""
    assert run("status", "--python", sys.executable) == run("status")


def test_a_python_without_axonize(run, tmp_path):
    """Nothing is written: each of its processes would complain."""
    other = script(tmp_path / "python", f'case "$2" in *purelib*) echo {tmp_path};; *) echo False;; esac')
    assert f"axonize is not installed there: {other} -m pip install 'axonize[triton]'" in run(
        "enable", "--python", other, code=1
    )
    assert not (tmp_path / "axonize_triton.pth").exists()


@pytest.mark.parametrize(
    ("text", "said"), [("echo first >&2; echo last >&2; exit 3", "last"), ("exit 3", "exit code 3")]
)
def test_a_python_that_fails(run, tmp_path, text, said):
    """Is named with what it said last."""
    other = script(tmp_path / "python", text)
    assert f"{other} failed: {said}" in run("status", "--python", other, code=1)


def test_where_nothing_can_be_written(run, site):
    """The file is named, and why not."""
    (site / "axonize_triton.pth").mkdir()
    assert "cannot write" in run("enable", code=1)
    assert "cannot remove" in run("disable", code=1)


def test_pitfalls_are_shown(run, site, monkeypatch):
    """Each on a line of its own."""
    monkeypatch.setattr(commands, "environment_pitfalls", lambda stub: ["one", "two"])
    assert "!! one\n!! two\n" in run("status")
