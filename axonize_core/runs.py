"""The arithmetic of a run: consecutive engine steps with the same members, as ``generate`` makes them.

The host sees the token that step k computed when step k+1 begins, and the last one when the run returns; steps
beyond the number of tokens are chunks of the prompt (checked on plain, chunked-prefill and beam decoding).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from axonize_core.events import SourceInfo

__all__ = ["Run", "Step"]


class Step(NamedTuple):
    """One engine step; times are perf_counter ns, token tuples have one entry per member or are empty (unknown)."""

    start_ns: int
    end_ns: int
    prefill_tokens: tuple[int, ...]
    decode_tokens: tuple[int, ...]
    context_tokens: tuple[int, ...]


@dataclass
class Run:
    """A run while it lives and once it ended; all times are the engine's perf_counter.

    ``mode``: ``generate`` (steps are tokens), ``speculative`` (a step may yield several), ``forward`` (no tokens),
    ``continuous`` (every step computes the same for each member: ``prompt_tokens``, or one token where that is 0).
    ``prompt_tokens`` is empty where a row's is unknown; ``new_tokens`` is per row with padding; ``context_tokens`` is
    what each member of a continuous run had before it. ``device_ns`` is what the device took for each step, as far as
    that was measured.
    ``epoch_ns`` is what turns a time into an epoch time.
    """

    source: SourceInfo
    seqs: tuple[int, ...]
    prompt_tokens: tuple[int, ...]
    mode: str
    start_ns: int
    epoch_ns: int
    times: array[int] = field(default_factory=lambda: array("q"))
    end_ns: int | None = None
    new_tokens: int | None = None
    incomplete: bool = False
    context_tokens: tuple[int, ...] = ()
    device_ns: tuple[int | None, ...] = ()
    counted_steps: tuple[int, int] | None = None
    """Steps of prompt and answer where the times are the tokens' own and not those of steps."""
    _gaps: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def last_ns(self) -> int:
        """Return the latest time known of this run."""
        if self.end_ns is not None:
            return self.end_ns
        return self.times[-1] if self.times else self.start_ns

    @property
    def prompt_steps(self) -> int:
        """Return how many steps computed the prompt."""
        if self.mode != "generate" or not self.new_tokens:
            return 1
        return max(1, len(self.times) - self.new_tokens + 1)

    def token_ns(self, token: int) -> int | None:
        """Return when token 1, 2, … was visible to the host; None where that is not known."""
        if self.mode != "generate" or not self.new_tokens or not 0 < token <= self.new_tokens:
            return None
        if token == self.new_tokens:
            return self.end_ns
        index = self.prompt_steps + token - 1
        return self.times[index] if index < len(self.times) else None

    def first_visible_ns(self) -> int | None:
        """Return when the prompt was done and the first of the answer was visible."""
        if self.mode == "generate":
            return self.token_ns(1)
        if self.mode == "speculative" and len(self.times) != 1:
            return self.times[1] if self.times else None
        return self.end_ns

    def last_visible_ns(self, output_tokens: int | None) -> int | None:
        """Return when the last of so many tokens was visible; None for a run without tokens."""
        if self.mode == "forward":
            return None
        if self.mode == "speculative":
            return self.end_ns
        return self.token_ns(self._position(output_tokens))

    def _position(self, output_tokens: int | None) -> int:
        """Return the last position a row reached; several sequences of one request share positions."""
        reached = self.new_tokens or 0
        return reached if output_tokens is None else min(output_tokens, reached)

    def tpot_ns(self, output_tokens: int | None) -> float | None:
        """Return (last - first token) / (tokens - 1), or None below two tokens."""
        first_ns, last_ns = self.first_visible_ns(), self.last_visible_ns(output_tokens)
        if first_ns is None or last_ns is None or output_tokens is None:
            return None
        tokens = self._position(output_tokens) if self.mode == "generate" else output_tokens
        return (last_ns - first_ns) / (tokens - 1) if tokens > 1 else None

    def gap_statistics(self, tokens: int | None) -> tuple[int, int, int] | None:
        """Return p50, p99 and the maximum of the times between the first ``tokens`` tokens, in ns."""
        if tokens is None or self.token_ns(tokens := self._position(tokens)) is None or tokens == 1:
            return None
        if tokens not in self._gaps:
            seen = [t for k in range(1, tokens + 1) if (t := self.token_ns(k)) is not None]
            gaps = sorted(b - a for a, b in pairwise(seen))
            self._gaps[tokens] = (gaps[len(gaps) // 2], gaps[int(len(gaps) * 0.99)], gaps[-1])
        return self._gaps[tokens]

    @property
    def prefill_steps(self) -> int | None:
        """Return how many steps computed the prompt, as far as that is known."""
        return self.prompt_steps if self.counted_steps is None else self.counted_steps[0] or None

    def decode_steps(self, output_tokens: int | None) -> int | None:
        """Return the steps after the prompt in which a row with so many tokens took part."""
        if self.counted_steps is not None:
            return self.counted_steps[1] or None
        if self.mode == "generate" and output_tokens:
            return self._position(output_tokens) - 1
        return max(0, len(self.times) - self.prompt_steps)

    def step_device_ns(self, step: int) -> int | None:
        """Return the device's time for step 0, 1, …; None where it was not measured."""
        return self.device_ns[step] if step < len(self.device_ns) else None

    def phase_device_ns(self, first: int, steps: int) -> int | None:
        """Return the device's time for so many steps from ``first`` on; None unless all of them were measured."""
        found = [n for n in self.device_ns[first : first + steps] if n is not None]
        return sum(found) if len(found) == steps > 0 else None

    def steps(self) -> Iterator[Step]:
        """Yield the steps of an ended run. Chunks of the prompt add up to the prompt."""
        starts = list(self.times) if self.times else [self.start_ns]
        ends = [*starts[1:], self.last_ns]
        if self.mode == "continuous":
            yield from self._continuous_steps(starts, ends)
            return
        rows, chunks = len(self.seqs), self.prompt_steps
        none, one = (0,) * rows, (1,) * rows
        later_decode = () if self.mode == "speculative" else one
        for k, (start_ns, end_ns) in enumerate(zip(starts, ends, strict=True)):
            if k < chunks:
                done = tuple(n * k // chunks for n in self.prompt_tokens)
                share = tuple(n * (k + 1) // chunks - d for n, d in zip(self.prompt_tokens, done, strict=True))
                yield Step(start_ns, end_ns, share, none, done)
            else:
                context = () if self.mode == "speculative" else tuple(n + k - chunks for n in self.prompt_tokens)
                yield Step(start_ns, end_ns, none, later_decode, context)

    def _continuous_steps(self, starts: list[int], ends: list[int]) -> Iterator[Step]:
        prefill = self.prompt_tokens
        decode = tuple(0 if tokens else 1 for tokens in prefill)
        for k, (start_ns, end_ns) in enumerate(zip(starts, ends, strict=True)):
            yield Step(start_ns, end_ns, prefill, decode, tuple(n + k for n in self.context_tokens))
