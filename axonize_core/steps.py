"""Steps of a scheduler that tells each of them, and what they mean for their members.

One ``Steps`` for each engine of an inference process, on the agent's main thread. Schedulers plan the next step while
one still runs, so a request that ended may be a member of a step that is told later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from axonize_core.live import LiveRequest
    from axonize_core.progress import Progress

__all__ = ["Members", "Steps"]

MOST_ENDED = 4096
"""How many ended requests are remembered, for steps that were planned before they ended."""


class Members(NamedTuple):
    """Who took part in a step; the tuples have the same length."""

    requests: tuple[LiveRequest, ...]
    prefill_tokens: tuple[int, ...]
    decode_tokens: tuple[int, ...]
    context_tokens: tuple[int, ...]
    unknown: int
    """Members nobody ever told of."""


class Steps:
    """The members of one engine's steps, and their progress."""

    def __init__(self) -> None:
        self._live: dict[str, LiveRequest] = {}
        self._ended: dict[str, LiveRequest] = {}
        self._scheduled: dict[str, int] | None = None

    def open(self, engine_id: str, request: LiveRequest) -> None:
        """Know a request from now on."""
        self._live[engine_id] = request

    def close(self, engine_id: str) -> None:
        """Let go of a request that ended."""
        request = self._live.pop(engine_id, None)
        if request is not None:
            self._ended[engine_id] = request
            if len(self._ended) > MOST_ENDED:
                del self._ended[next(iter(self._ended))]

    def forget_members(self) -> None:
        """Records were lost: what "the same as before" means is not known until a step names its members again."""
        self._scheduled = None

    def take(self, number: int, payload: Any, end_ns: int) -> Members | None:
        """Move the members of a step on; None where it is not known who they are.

        Args:
            number: the step's.
            payload: members, started, preempted, drafts as in a STEP record, and when the step began.
            end_ns: when it was over.
        """
        members, started, preempted, drafts, start_ns = payload
        for engine_id in preempted or ():
            if (progress := self._progress(engine_id)) is not None:
                progress.preempt(start_ns)
        contexts: dict[str, int] = {}
        if members is not None:
            self._scheduled, ids, computed = members
            contexts = dict(zip(ids, computed, strict=True))
        if self._scheduled is None:
            return None
        for engine_id, context, prompt_tokens in started or ():
            contexts[engine_id] = context
            progress = self._progress(engine_id)
            if progress is not None and progress.runs and prompt_tokens > progress.prompt_tokens:
                progress.extend(prompt_tokens, start_ns)
        return self._move(self._scheduled, contexts, drafts or {}, (number, start_ns, end_ns))

    def _find(self, engine_id: str) -> LiveRequest | None:
        return self._live.get(engine_id) or self._ended.get(engine_id)

    def _progress(self, engine_id: str) -> Progress | None:
        request = self._find(engine_id)
        return request.progress if request is not None else None

    def _move(
        self,
        scheduled: dict[str, int],
        contexts: dict[str, int],
        drafts: dict[str, tuple[int, int]],
        step: tuple[int, int, int],
    ) -> Members:
        number, start_ns, end_ns = step
        requests, prefills, decodes, before = [], [], [], []
        for engine_id, tokens in scheduled.items():
            request = self._find(engine_id)
            if request is None or request.progress is None:
                continue
            progress = request.progress
            if engine_id in contexts or not progress.runs:
                progress.place(contexts.get(engine_id, progress.context), start_ns)
            before.append(progress.context)
            prefill, decode = progress.step(number, tokens, end_ns, drafts.get(engine_id))
            request.last_ns = end_ns
            requests.append(request)
            prefills.append(prefill)
            decodes.append(decode)
        unknown = len(scheduled) - len(requests)
        return Members(tuple(requests), tuple(prefills), tuple(decodes), tuple(before), unknown)
