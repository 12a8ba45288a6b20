"""A request whose input is worked off in chunks has a run for each; its own times are those of all of them."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from axonize_core.runs import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["as_one"]


def as_one(runs: Sequence[Run]) -> Run | None:
    """Return the runs of one ended request as one: from the first's start to the last's end.

    The first token is the first chunk's. Later tokens have no times of their own: which of them an answer that was
    put together out of chunks kept, is not known. None when there are no runs.
    """
    if len(runs) < 2:  # noqa: PLR2004 - what is one already
        return runs[0] if runs else None
    first, last = runs[0], runs[-1]
    forward = all(run.mode == "forward" for run in runs)
    visible_ns = None if forward else first.first_visible_ns()
    mode = "forward" if forward else "generate" if visible_ns is None else "speculative"
    return Run(
        source=first.source,
        seqs=first.seqs,
        prompt_tokens=(),
        mode=mode,
        start_ns=first.start_ns,
        epoch_ns=first.epoch_ns,
        times=array("q", [] if visible_ns is None else [first.start_ns, visible_ns]),
        end_ns=last.last_ns,
        incomplete=any(run.incomplete for run in runs),
        counted_steps=_steps(runs),
    )


def _steps(runs: Sequence[Run]) -> tuple[int, int]:
    """Return the steps that computed prompts, and those after them."""
    prompts = sum(run.prompt_steps for run in runs)
    return prompts, sum(max(1, len(run.times)) for run in runs) - prompts
