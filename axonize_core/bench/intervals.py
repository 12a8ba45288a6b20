"""Paired differences with their uncertainty, robust against the odd round that a neighbour spoiled."""

from __future__ import annotations

import math
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


def paired_interval(ratios: Sequence[float]) -> Interval:
    """Return the trimmed mean of one ratio per round, less one, and its percentile bootstrap over blocks of rounds.

    Means are taken of logarithms: a round twice as fast and one half as fast cancel. Blocks (circular, as long as the
    cube root of the rounds) keep together what lies side by side, since a neighbour's load lasts longer than a round.

    Raises:
        ValueError: there are fewer than three rounds.
    """
    if len(ratios) < 3:  # noqa: PLR2004 - two rounds have no spread worth the name
        raise ValueError(f"{len(ratios)} rounds are too few for an interval; take at least 3")
    logs = [math.log(ratio) for ratio in ratios]
    chance = random.Random(_SEED)  # noqa: S311 - resampling, not a secret; the same data gives the same interval
    means = sorted(_trimmed_mean(_resampled(logs, chance)) for _ in range(_RESAMPLES))
    return Interval(*(math.expm1(log) for log in (_trimmed_mean(logs), quantile(means, 0.025), quantile(means, 0.975))))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which that share of ascending values lies, the nearest one there is."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _resampled(values: Sequence[float], chance: random.Random) -> list[float]:
    count = len(values)
    length = round(count ** (1 / 3))
    starts = (chance.randrange(count) for _ in range(-(-count // length)))
    return [values[(start + i) % count] for start in starts for i in range(length)][:count]


def _trimmed_mean(values: Sequence[float]) -> float:
    cut = int(len(values) * TRIMMED)
    kept = sorted(values)[cut : len(values) - cut]
    return sum(kept) / len(kept)
