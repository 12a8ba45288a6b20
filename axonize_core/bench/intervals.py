"""Paired differences with their uncertainty, robust against the odd round that a neighbour spoiled."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Interval", "paired_interval", "quantile"]

TRIMMED = 0.2
"""Share of the rounds left out at either end."""
_RESAMPLES = 2000
_SEED = 7


class Interval(NamedTuple):
    """A relative difference (0.01 is 1 %) with its 95 % confidence interval."""

    share: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2

    def text(self) -> str:
        """Return it in percent: ``-0.31 % (95 % interval -0.92 … +0.30 %)``."""
        return f"{self.share * 100:+.2f} % (95 % interval {self.low * 100:+.2f} … {self.high * 100:+.2f} %)"


def paired_interval(differences: Sequence[float]) -> Interval:
    """Return the trimmed mean of one difference per round, and the percentile bootstrap over rounds of it.

    Raises:
        ValueError: there are fewer than three rounds.
    """
    if len(differences) < 3:  # noqa: PLR2004 - two rounds have no spread worth the name
        raise ValueError(f"{len(differences)} rounds are too few for an interval; take at least 3")
    chance = random.Random(_SEED)  # noqa: S311 - resampling, not a secret; the same data gives the same interval
    means = sorted(_trimmed_mean(chance.choices(differences, k=len(differences))) for _ in range(_RESAMPLES))
    return Interval(_trimmed_mean(differences), quantile(means, 0.025), quantile(means, 0.975))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which that share of ascending values lies, the nearest one there is."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _trimmed_mean(values: Sequence[float]) -> float:
    cut = int(len(values) * TRIMMED)
    kept = sorted(values)[cut : len(values) - cut]
    return sum(kept) / len(kept)
