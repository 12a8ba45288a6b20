"""Which of several things make a whole be refused: halving, with a bound on the attempts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["UNDECIDED", "Budget", "poisonous"]

UNDECIDED: Final = "not tried: the attempts allowed for one segment were used up"


class Budget:
    """Attempts and seconds that may be spent on one segment; `clock` in monotonic seconds."""

    def __init__(self, attempts: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.attempts = attempts
        self._clock = clock
        self._ends_at = clock() + seconds

    @property
    def spent(self) -> bool:
        """Whether no further attempt is allowed."""
        return self.attempts <= 0 or self._clock() >= self._ends_at


def poisonous(
    count: int, refusal: Callable[[Sequence[int]], str | None], budget: Budget, *, together: bool = False
) -> dict[int, str]:
    """Give the indices below `count` that cannot be taken, each with its reason.

    One bad thing of n takes about 2 log2 n attempts, and four times the work of one attempt with all.

    Args:
        count: How many things there are.
        refusal: Tries the things at these indices; None when they are taken.
        budget: What may be spent; things it does not suffice for are in the answer as `UNDECIDED`.
        together: Try each beside all that were found good, for things that are refused only beside others: what is
            not in the answer was then taken in one attempt. It takes as many attempts, with nearly all each time.
    """
    good: list[int] = []
    bad: dict[int, str] = {}

    def sort_out(indices: Sequence[int]) -> None:
        if budget.spent:
            bad.update(dict.fromkeys(indices, UNDECIDED))
            return
        budget.attempts -= 1
        reason = refusal(sorted([*good, *indices]) if together else indices)
        if reason is None:
            good.extend(indices)
        elif len(indices) == 1:
            bad[indices[0]] = reason
        else:
            middle = len(indices) // 2
            sort_out(indices[:middle])
            sort_out(indices[middle:])

    if count:
        sort_out(range(count))
    return dict(sorted(bad.items()))
