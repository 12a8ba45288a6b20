"""One outermost call of a model that does not generate: one run of one step, one request per row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from axonize_core.recorder import get_recorder
from axonize_hf.run import Batch, Run, close_rows, current_run, guarded, open_rows
from axonize_hf.tasks import model_operation
from axonize_hf.tokens import row_lengths

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Forward", "input_lengths", "record_forward"]


def record_forward(
    model: Any, source: int | None, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Call ``original`` once, return what it returns and raise what it raises; record it if it is outermost."""
    outermost = current_run.get() is None
    forward = _begin(model, source, args, kwargs) if outermost and source is not None else None
    if forward is None:
        return original(*args, **kwargs)
    try:
        output = original(*args, **kwargs)
    except BaseException as error:
        forward.end(error)
        raise
    forward.end(None)
    return output


class Forward:
    """A forward under way; ``input_tokens`` of the requests it closes at its end (empty: a pipeline's)."""

    def __init__(self, owner: Any, batch: Batch, input_tokens: tuple[int | None, ...] = ()) -> None:
        self._batch = batch
        self._input_tokens = input_tokens
        self._run = Run(owner, batch, "forward")

    def end(self, error: BaseException | None) -> None:
        """Record the end. Same thread as the begin."""
        self._run.leave()
        self._close(error)

    @guarded("hf.forward.end")
    def _close(self, error: BaseException | None) -> None:
        self._run.end(None, None if error is None else type(error).__name__)
        close_rows(self._batch.seqs, self._input_tokens, error=error)


@guarded("hf.forward.begin")
def _begin(model: Any, source: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Forward | None:
    started_ns = get_recorder().clock()
    first = {getattr(model, "main_input_name", "input_ids"): args[0]} if args else {}
    lengths = input_lengths({**first, **kwargs})
    seqs = open_rows(source, started_ns, model_operation(type(model).__name__), lengths)
    return Forward(model, Batch(source, seqs, lengths), lengths)


def input_lengths(inputs: Any) -> tuple[int | None, ...]:
    """Return each row's tokens of a model's inputs; None where the inputs are no tokens."""
    if not isinstance(inputs, Mapping):
        return (None,)
    for name in ("input_ids", "inputs_embeds"):
        ids = inputs.get(name)
        if getattr(ids, "ndim", 0) > 1:
            return row_lengths(ids, inputs.get("attention_mask"))
    first = next((value for value in inputs.values() if getattr(value, "ndim", 0)), None)
    return (None,) * (1 if first is None else first.shape[0])
