"""The rows and the table of ``make bench``: each number beside its peer or limit of the same run."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Row", "print_table"]


class Row(NamedTuple):
    """One measured number; texts carry their units."""

    name: str
    ours: str
    peer: str
    peer_name: str
    ratio: str
    target: str
    met: bool


def print_table(rows: list[Row]) -> None:
    """Print the rows as a Markdown table."""
    head = ("what", "ours", "peer or limit", "which", "ratio", "target", "met")
    body = [(r.name, r.ours, r.peer, r.peer_name, r.ratio, r.target, "yes" if r.met else "NO") for r in rows]
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    for row in [head, tuple("-" * w for w in widths), *body]:
        print("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |")
