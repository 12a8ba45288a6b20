"""The table of docs/huggingface-matrix.md, made from what ran, and what of it differs from what stands there."""

from __future__ import annotations

import re
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from axonize_hf._supported import SUPPORTED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Cell", "meaning_of", "read", "render"]

JOIN = " · "

INTRODUCTION = """\
<!-- made by `python tests/hf_matrix.py --docs`; a test compares it with what ran -->
# Which transformers can be recorded

Every version from {low} up to, not including, {high} is supported; these are the ones that are tried. Each row was
run twice with the same tiny model and the same seed, plain and instrumented, on a CPU. **yes** means that the outputs
are identical, and that the recorded requests, tokens, prefill and decode steps, batches and finish reasons are what
they have to be. **–** means that this version of transformers cannot do it here even without Axonize; the footnote is
what the library says. Anything else fails the test run.
"""
TITLES = {
    "generate": "`generate` of a model",
    "pipelines": "Pipelines",
    "objects": "Models and pipelines as objects",
}
NOTES = {
    "unsupported operand type(s) for -: 'NoneType' and 'int'": (
        "continuous batching of this version sizes its cache by the memory of a GPU, and the run had none"
    ),
}
"""What the library means where its own words do not tell."""


class Cell(NamedTuple):
    """What one row of one version came to: ``ok``, ``unsupported`` or ``failed``, and why."""

    version: str
    group: str
    task: str
    mode: str
    result: str
    why: str


class _Row(NamedTuple):
    group: str
    task: str
    mode: str
    cells: tuple[str, ...]


def render(cells: Iterable[Cell]) -> str:
    """Return the document. Modes of one task with the same cells share a row."""
    footnotes: dict[str, int] = {}
    versions, rows = _rows(list(cells), footnotes)
    low, high = (".".join(map(str, bound)) for bound in SUPPORTED)
    parts = [INTRODUCTION.format(low=low, high=high)]
    for group, found in groupby(rows, key=lambda row: row.group):
        parts.append(f"\n## {TITLES[group]}\n\n" + "\n".join(_table(versions, found)) + "\n")
    notes = "\n".join(f"{number}. {text}" for text, number in footnotes.items())
    return "".join(parts) + f"\n## Footnotes\n\n{notes}\n"


def _rows(cells: list[Cell], footnotes: dict[str, int]) -> tuple[list[str], list[_Row]]:
    versions = list(dict.fromkeys(cell.version for cell in cells))
    found: dict[tuple[str, str, str], dict[str, Cell]] = {}
    for cell in cells:
        found.setdefault((cell.group, cell.task, cell.mode), {})[cell.version] = cell
    rows = [_Row(*key, tuple(_text(row[v], footnotes) for v in versions)) for key, row in found.items()]
    return versions, rows


def _text(cell: Cell, footnotes: dict[str, int]) -> str:
    meaning = meaning_of(cell)
    return meaning if cell.result != "unsupported" else f"– [{footnotes.setdefault(meaning, len(footnotes) + 1)}]"


def meaning_of(cell: Cell) -> str:
    """Return ``yes``, or what the footnote says, or that it failed."""
    if cell.result != "unsupported":
        return "yes" if cell.result == "ok" else "**failed**"
    return next((note for text, note in NOTES.items() if text in cell.why), f"`{cell.why.replace('`', '')}`")


def _table(versions: list[str], rows: Iterable[_Row]) -> Iterator[str]:
    yield "| task | mode | " + " | ".join(versions) + " |"
    yield "|---|---|" + "---|" * len(versions)
    for (task, cells), same in groupby(rows, key=lambda row: (row.task, row.cells)):
        modes = JOIN.join(row.mode for row in same)
        yield f"| {task} | {modes} | " + " | ".join(cells) + " |"


def read(document: str) -> dict[str, dict[tuple[str, str], str]]:
    """Return {version: {(task, mode): meaning}} of a rendered document."""
    notes = dict(re.findall(r"^(\d+)\. (.*)$", document, re.MULTILINE))
    columns: dict[str, dict[tuple[str, str], str]] = {}
    versions: list[str] = []
    for line in (line for line in document.splitlines() if line.startswith("| ")):
        task, modes, *cells = (field.strip() for field in line.strip("|").split("|"))
        if task == "task":
            versions = cells
            continue
        for version, cell in zip(versions, cells, strict=True):
            number = cell.partition("[")[2].rstrip("]")
            meaning = notes[number] if number else cell
            columns.setdefault(version, {}).update({(task, mode): meaning for mode in modes.split(JOIN)})
    return columns
