"""The items of one call of a pipeline: each a request, computed in one chunk or in several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axonize_hf.encoder import input_lengths
from axonize_hf.run import Batch
from axonize_hf.tokens import count_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from axonize_hf.context import RequestContext

__all__ = ["Chunk", "Item", "batch_of", "count_outputs", "tokens_of", "worker_rows"]

# Where the pipelines keep the ids that a model generated; image-to-text returns the tensor itself.
_SEQUENCES = ("generated_sequence", "output_ids", "tokens", "sequences", "outputs")


class Item:
    """One input of a call; ``batch`` is the last one that it was in."""

    def __init__(self, seq: int, context: RequestContext) -> None:
        self.seq = seq
        self.context = context
        self.batch: Batch | None = None
        self._tokens: list[int | None] = []

    def add(self, tokens: int | None) -> Chunk:
        """Note a chunk of so many tokens, None where it has none or they are unknown."""
        self._tokens.append(tokens)
        return self, tokens

    @property
    def input_tokens(self) -> int | None:
        """Return the tokens of all its chunks."""
        return _sum(self._tokens)


Chunk = tuple[Item, "int | None"]


def _sum(tokens: Iterable[int | None]) -> int | None:
    """Add up; None where one is unknown, or where there is none."""
    known = list(tokens)
    return None if not known or None in known else sum(n for n in known if n is not None)


def tokens_of(inputs: Any) -> int | None:
    """Return the tokens of what was prepared from one input."""
    return _sum(input_lengths(inputs))


def batch_of(source: int, chunks: Iterable[Chunk]) -> Batch:
    """Return the batch of these chunks; an item is one member of it, with however many chunks."""
    members: dict[Item, list[int | None]] = {}
    for item, tokens in chunks:
        members.setdefault(item, []).append(tokens)
    return Batch(source, tuple(item.seq for item in members), [_sum(tokens) for tokens in members.values()])


def worker_rows(inputs: Any, *, batched: bool) -> Iterator[tuple[Any, int | None, bool]]:
    """Yield of each row that a worker process prepared its prompt, its tokens, and whether an item ends with it.

    The prompt is None where the pipeline does not hand it on.
    """
    get: Callable[..., Any] = getattr(inputs, "get", lambda _, default=None: default)
    last, prompt = get("is_last", True), get("prompt_text")
    if not batched:
        yield prompt, tokens_of(inputs), bool(last)
        return
    for row, tokens in enumerate(input_lengths(inputs)):
        yield prompt and prompt[row], tokens, bool(last if isinstance(last, bool) else last[row])


def count_outputs(model: Any, outputs: Any, batch: Batch | None) -> tuple[int, str | None] | None:
    """Count what was generated for one item, on the copy in host memory that the pipeline made anyway.

    Returns tokens and finish reason; None for what does not generate, or generates no tokens (audio).
    """
    if batch is None or batch.rules is None:
        return None
    prefix = _dropped(model, batch.prefix)
    parts = [_rows(chunk, prefix) for chunk in (outputs if isinstance(outputs, list) else [outputs])]
    rows = [row for part in parts for row in part or ()]
    if not rows or None in parts:
        return None
    tokens, reason = count_rows(rows, batch.rules)
    # A row beyond the limit was put together out of several windows: each ended on its own.
    windows = batch.rules.limit is not None and any(len(row) > batch.rules.limit for row in rows)
    return tokens, None if windows else reason


def _dropped(model: Any, prefix: int) -> Callable[[list[int]], int]:
    """Return what says how many tokens of a row are not new."""
    if not model.config.is_encoder_decoder or prefix > 1:
        return lambda _: prefix
    # What starts the decoder is returned, or is not (Whisper from 4.57 on); Whisper's has a language and a task.
    config = model.generation_config
    starts = {config.decoder_start_token_id, getattr(config, "no_timestamps_token_id", None)}
    for name in ("lang_to_id", "task_to_id"):
        starts.update((getattr(config, name, None) or {}).values())
    return lambda row: next((n for n, token in enumerate(row) if token not in starts), len(row))


def _rows(outputs: Any, dropped: Callable[[list[int]], int]) -> list[list[int]] | None:
    """Return the new tokens of each sequence of one chunk; None where there are no tokens."""
    found: Any = outputs if hasattr(outputs, "ndim") else next((outputs[k] for k in _SEQUENCES if k in outputs), None)
    if not hasattr(found, "ndim") or found.is_floating_point():
        return None
    rows: list[list[int]] = found.reshape(-1, found.shape[-1]).tolist()
    return [row[dropped(row) :] for row in rows]
