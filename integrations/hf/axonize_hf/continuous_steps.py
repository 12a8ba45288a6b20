"""The engine steps of continuous batching as runs: consecutive steps that decode for the same requests are one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axonize_core.frames import Kind
from axonize_core.recorder import get_recorder
from axonize_hf.run import guarded

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Steps"]


class Steps:
    """The steps of one manager; everything runs on the manager's thread but ``close``, which any may call."""

    def __init__(self, source: int, seq_of: Callable[[str], int | None]) -> None:
        self._source = source
        self._seq_of = seq_of
        self._clock = get_recorder().clock
        self._handle: int | None = None
        self._times: list[int] = []
        self._states: list[Any] = []
        self._repeats = False
        self._end_ns = 0

    def run(self, manager: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Compute one step, recorded."""
        self._begin(manager.batch_processor)
        try:
            result = original(*args, **kwargs)
        except BaseException as error:
            self.close(type(error).__name__)
            raise
        self._end_ns = self._clock()
        return result

    @guarded("hf.continuous.close")
    def close(self, error: str | None = None) -> None:
        """End the run; its members change with the next step, or there is none."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._times.append(-max(self._end_ns, self._times[-1]))
            get_recorder().emit(Kind.RUN_END, handle, (None, error))

    @guarded("hf.continuous.step")
    def _begin(self, processor: Any) -> None:
        batch = _members(processor)
        states = [getattr(member, "state", member) for member in batch]
        if self._handle is not None and self._repeats and states == self._states:
            self._times.append(self._clock())
            return
        self.close()
        self._open(batch, states)

    def _open(self, batch: list[Any], states: list[Any]) -> None:
        """Announce a run: its members, and where the library says so the tokens each computes and has before."""
        prefill: dict[int, int] = {}
        context: dict[int, int] = {}
        known = True
        for member, state in zip(batch, states, strict=True):
            seq = self._seq_of(state.request_id)
            if seq is None:
                continue
            computed = getattr(member, "query_length", None)
            known = known and computed is not None
            before = state.position_offset - (computed or 0)
            # The sequences of one request share its place: their prompts add up, their positions do not.
            prefill[seq] = prefill.get(seq, 0) + (computed or 0) * (before < len(_prompt(state)))
            context[seq] = max(context.get(seq, 0), before)
        if not prefill:
            return
        self._states, self._repeats = states, known and not any(prefill.values())
        self._times = [self._clock()]
        self._handle = get_recorder().next_handle()
        tokens = (tuple(prefill.values()), tuple(context.values())) if known else ((), ())
        payload = (self._source, tuple(prefill), tokens[0], "continuous", tokens[1], self._times)
        get_recorder().emit(Kind.RUN, self._handle, payload)


def _members(processor: Any) -> list[Any]:
    """Return what the step computes; the library keeps it in three places, by version and mode."""
    place = getattr(processor, "inputs_and_outputs", processor)
    pairs = getattr(place, "io_pairs", None)
    if pairs is not None:
        place = pairs[place.current_pair].host_io
    members: list[Any] = place.requests_in_batch
    return members


def _prompt(state: Any) -> Any:
    return getattr(state, "initial_tokens", ())
