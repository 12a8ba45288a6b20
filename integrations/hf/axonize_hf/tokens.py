"""Counts tokens without asking the device: shapes always, values only where they are in host memory."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["StopRules", "count_rows", "end_tokens", "host_rows", "row_lengths"]


class StopRules(NamedTuple):
    """What ends a row of ``generate``; ``limit`` is in new tokens, None when the call does not say."""

    eos: frozenset[int] = frozenset()
    pad: int | None = None
    limit: int | None = None


def end_tokens(given: Any) -> frozenset[int]:
    """Return the end tokens of an ``eos_token_id``: one, several or none; tensors are not read."""
    ends = given if isinstance(given, (list, tuple)) else (given,)
    return frozenset(end for end in ends if isinstance(end, int))


def row_lengths(ids: Any, mask: Any) -> tuple[int | None, ...]:
    """Return the tokens of each row of ``ids [rows, tokens]`` without padding; None where only the device knows."""
    rows = ids.shape[0]
    if mask is not None and mask.ndim == 2 and mask.shape[0] == rows:  # noqa: PLR2004
        if mask.device.type != "cpu":
            return (None,) * int(rows) if rows > 1 else (int(ids.shape[1]),)
        # Masks come as integers, as booleans and as floats; counts are integers.
        lengths: list[int] = (mask > 0).sum(-1).tolist()
        return tuple(lengths)
    return (int(ids.shape[1]),) * int(rows)


def host_rows(sequences: Any, prefix: int) -> list[list[int]] | None:
    """Return what follows the first ``prefix`` tokens of each row, or None when it lies on a device."""
    if sequences.device.type != "cpu":
        return None
    rows: list[list[int]] = sequences[:, prefix:].tolist()
    return rows


def count_rows(rows: list[list[int]], rules: StopRules) -> tuple[int, str]:
    """Return the tokens of all rows of one request without padding, and why it finished: stop or length."""
    counts = [_count(row, rules) for row in rows]
    reason = "length" if any(reason == "length" for _, reason in counts) else "stop"
    return sum(count for count, _ in counts), reason


def _count(row: list[int], rules: StopRules) -> tuple[int, str]:
    for index, token in enumerate(row):
        if token in rules.eos:
            return index + 1, "stop"
    count = len(row)
    if rules.pad is not None:
        while count and row[count - 1] == rules.pad:
            count -= 1
    return count, "length" if rules.limit is None or count >= rules.limit else "stop"
