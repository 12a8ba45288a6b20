"""What ``generate`` returned, in numbers: shapes always, values only where they are in host memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from axonize_hf.run import guarded
from axonize_hf.tokens import count_rows, host_rows

if TYPE_CHECKING:
    from axonize_hf.call import Call

__all__ = ["Answer", "read_answer"]

_OWN_PREFIX = 8
"""The most tokens by which a model's own ``generate`` may return more than its steps made: forced first ones."""


class Answer(NamedTuple):
    """``new_tokens`` of each row, padding included, and tokens and finish reason of each request; unknown is None."""

    new_tokens: int | None
    requests: list[tuple[int | None, str | None]]
    padded: bool = True


@guarded("hf.generate.answer")
def read_answer(output: Any, steps: int, call: Call) -> Answer:
    """Read what ``generate`` returned after so many steps."""
    unknown: list[tuple[int | None, str | None]] = [(None, None)] * call.rows
    sequences = _sequences(output)
    if sequences.is_floating_point():
        # Sound: how many tokens it was made of is not said.
        return Answer(None, unknown)
    length = int(sequences.shape[-1])
    new_tokens, prefix = _own(sequences, steps, call) if call.own else (_computed(length, steps, call), call.prefix)
    if prefix is None:
        return Answer(new_tokens, unknown)
    requests = _requests(sequences, prefix, call)
    if new_tokens is None:
        # Put together out of several passes, each of which ended on its own.
        requests = [(tokens, None) for tokens, _ in requests]
    return Answer(new_tokens, requests, len(sequences) > 1)


def _sequences(output: Any) -> Any:
    """Return the ids among what ``generate`` returned: they alone, or one of several under its name or first."""
    if isinstance(output, dict):
        return output["sequences"]
    return output[0] if isinstance(output, tuple) else output


def _computed(length: int, steps: int, call: Call) -> int:
    """Return how many tokens each row got.

    Beam search may return fewer than it computed, one per step; only chunks of a prompt are steps without a token.
    """
    new_tokens = length - call.prefix
    return max(new_tokens, steps) if call.mode == "generate" and not call.chunked else new_tokens


def _own(sequences: Any, steps: int, call: Call) -> tuple[int | None, int | None]:
    """Return new tokens and prefix for a ``generate`` of the model's own, which may leave out its prompt or loop.

    Several passes make more steps than tokens, and a model inside that is not recorded makes none.
    """
    if not steps:
        return None, None
    prefix = int(sequences.shape[-1]) - steps
    return (steps, prefix) if 0 <= prefix <= _OWN_PREFIX else (None, _begun(sequences, call.start))


def _begun(sequences: Any, start: int | None) -> int:
    """Return 1 where an output in host memory begins with what starts the decoder: of Whisper's, that before 4.57."""
    on_host = sequences.device.type == "cpu" and sequences.numel() > 0
    return int(on_host and start is not None and int(sequences[0, 0]) == start)


def _requests(sequences: Any, prefix: int, call: Call) -> list[tuple[int | None, str | None]]:
    # One row has no padding, whatever its last tokens are.
    rules = call.rules if len(sequences) > 1 else call.rules._replace(pad=None)
    rows = host_rows(sequences, prefix)
    if rows is not None:
        per_request = len(rows) // call.rows
        starts = range(0, per_request * call.rows, per_request)
        return [count_rows(rows[start : start + per_request], rules) for start in starts]
    if len(sequences) > 1:
        return [(None, None)] * call.rows
    # Whether its last token at the limit was the end is known to the device only.
    new_tokens = int(sequences.shape[-1]) - prefix
    stopped = rules.limit is not None and new_tokens < rules.limit
    return [(new_tokens, "stop" if stopped else None)]
