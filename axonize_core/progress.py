"""The way of one request through a scheduler that tells every step: prefill, decode, preempted, and again.

The phases of a request follow one another without a gap, from its first step to its end.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["Phase", "Progress"]


@dataclass
class Phase:
    """A stretch of a request's time; times are the engine's perf_counter in ns.

    ``kind`` is prefill, decode or preempted. ``chunks`` are the steps that computed tokens not sampled here, each with
    its number and how many; ``first_token`` is the position in the request's tokens of the first that belongs here.
    """

    kind: str
    start_ns: int
    first_token: int
    end_ns: int = 0
    last_token: int = 0
    steps: int = 0
    chunks: list[tuple[int, int]] = field(default_factory=list)
    again: bool = False
    """Whether a prefill computes what was computed before and lost when the request was preempted."""
    recomputed: int = 0
    """Tokens of it that were."""


@dataclass
class Progress:
    """What is known of a request after each step.

    Args:
        prompt_tokens: length of the prompt.
        generates: False where no tokens come out, as in embedding.
    """

    prompt_tokens: int
    generates: bool = True
    responds: bool = False
    """Whether responses are counted and not tokens; then the time before the first step is not known either."""
    context: int = 0
    """Tokens whose keys and values are there."""
    cached_tokens: int | None = None
    """Prompt tokens that did not need to be computed when it was first scheduled."""
    extended: bool = False
    """Whether the prompt grew on the way; the engine then counts the tokens since, we count all."""
    drafted: int = 0
    accepted: int = 0
    token_ns: array[int] = field(default_factory=lambda: array("q"))
    """When each token was visible to the scheduler."""
    phases: list[Phase] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._known = self._boundary = self.prompt_tokens
        self._lost = 0

    @property
    def first_step_ns(self) -> int | None:
        """Return when it was first scheduled."""
        return self.phases[0].start_ns if self.phases else None

    @property
    def runs(self) -> bool:
        """Say whether it was scheduled, and not preempted since."""
        return bool(self.phases) and self.phases[-1].kind != "preempted"

    def place(self, context: int, start_ns: int) -> None:
        """Take how many tokens are computed before a step that begins at ``start_ns``."""
        if not self.phases:
            self.cached_tokens = context
            self._enter("prefill", start_ns)
        elif not self.runs:
            self._enter("prefill", start_ns)
            self.phases[-1].again = True
        # A step that is planned while drafts are verified takes it that all of them are right.
        self.context = min(context, self._known - 1) if self.drafted else context

    def extend(self, prompt_tokens: int, start_ns: int) -> None:
        """Take a longer prompt: a session got its next input, and what it answered so far became a part of it."""
        self.prompt_tokens = self._known = self._boundary = prompt_tokens
        self.extended = True
        self._enter("prefill", start_ns)

    def step(self, number: int, scheduled: int, end_ns: int, drafts: tuple[int, int] | None) -> tuple[int, int]:
        """Take part in a step that ended at ``end_ns``; return its tokens of prefill and of decode.

        Args:
            number: of the step.
            scheduled: tokens computed for this request.
            end_ns: when the step was over.
            drafts: tokens drafted and tokens that came out, where the step verified drafts; none come out where what it
                computed is thrown away.
        """
        prefill = max(0, min(scheduled, self._boundary - self.context))
        phase = self.phases[-1]
        phase.steps += 1
        if prefill:
            phase.chunks.append((number, prefill))
            phase.recomputed += max(0, min(prefill, self._lost - self.context))
        if drafts is not None:
            drafted, tokens = drafts
            self.drafted += drafted
            self.accepted += max(0, tokens - 1)
            self.context += scheduled - drafted + tokens - 1
        else:
            tokens = int(self.generates and self.context + scheduled >= self._known)
            self.context += scheduled
        if tokens:
            self._known += tokens
            self.token_ns.extend([end_ns] * tokens)
            if phase.kind == "prefill":
                self._enter("decode", end_ns)
                self.phases[-1].first_token -= tokens
        return prefill, scheduled - prefill

    def respond(self, time_ns: int) -> None:
        """Give a response, the first of which ends the prefill."""
        self.token_ns.append(time_ns)
        if self.phases[-1].kind == "prefill":
            self._enter("decode", time_ns)
            self.phases[-1].first_token -= 1

    def preempt(self, time_ns: int) -> None:
        """Lose everything computed at ``time_ns``; nothing where it was not running."""
        if self.runs:
            # What it once had counts, and not what it has: it may be taken out again before all that is there again.
            self._lost = max(self._lost, self.context)
            self._boundary = max(self._boundary, self._lost)
            self._enter("preempted", time_ns)

    def end(self, time_ns: int, *, told: bool = True) -> None:
        """Close the last phase. What an engine does after an only token, until it is done with it, is no decode.

        Args:
            time_ns: of the end.
            told: whether the engine said that this is all; where it died, the decode is what tells of the token.
        """
        self._close(time_ns)
        if not self.phases or self.phases[-1].kind != "decode":
            return
        last = self.phases[-1]
        only_token = told and not self.responds and not last.steps and len(self.token_ns) == 1
        if only_token or last.end_ns <= last.start_ns:
            self.phases.pop()
            self.phases[-1].end_ns = last.end_ns

    def gap_statistics(self, phase: Phase) -> tuple[int, int, int] | None:
        """Return p50, p99 and the maximum of the times between a phase's tokens in ns; None below two tokens."""
        times = self.token_ns[phase.first_token : phase.last_token]
        gaps = sorted(b - a for a, b in pairwise(times))
        return (gaps[len(gaps) // 2], gaps[int(len(gaps) * 0.99)], gaps[-1]) if gaps else None

    def _enter(self, kind: str, time_ns: int) -> None:
        """Begin a phase; a step is planned, and takes somebody out, while the one before it still runs."""
        begin_ns = max(time_ns, self.phases[-1].start_ns) if self.phases else time_ns
        self._close(begin_ns)
        self.phases.append(Phase(kind, begin_ns, len(self.token_ns)))

    def _close(self, time_ns: int) -> None:
        if self.phases:
            self.phases[-1].end_ns = max(time_ns, self.phases[-1].start_ns)
            self.phases[-1].last_token = len(self.token_ns)
