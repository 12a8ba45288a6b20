"""Counting tokens of rows."""

from __future__ import annotations

import pytest

from axonize_hf.tokens import StopRules, count_rows, host_rows, row_lengths

EOS, PAD = 2, 0


@pytest.mark.parametrize(
    ("rows", "rules", "expected"),
    [
        ([[5, 6, 7]], StopRules(frozenset({EOS}), PAD, 3), (3, "length")),
        ([[5, EOS, PAD]], StopRules(frozenset({EOS}), PAD, 3), (2, "stop")),
        ([[5, EOS, EOS]], StopRules(frozenset({EOS}), EOS, 3), (2, "stop")),
        ([[5, 6, PAD]], StopRules(frozenset({EOS}), PAD, 3), (2, "stop")),
        ([[5, 6]], StopRules(frozenset({EOS}), PAD, None), (2, "length")),
        ([[5, 9, 9], [5, 8, 9]], StopRules(frozenset({8, 9}), None, 3), (4, "stop")),
        ([[5, EOS, PAD], [5, 6, 7]], StopRules(frozenset({EOS}), PAD, 3), (5, "length")),
        ([[]], StopRules(), (0, "length")),
    ],
)
def test_rows_are_counted_up_to_their_end(rows, rules, expected):
    """The end token counts, padding does not; a row that met neither the end nor the limit was stopped by other means."""
    assert count_rows(rows, rules) == expected


def test_prompts_are_counted_by_their_mask():
    """A mask in host memory tells the tokens without padding; without one the padded length counts."""
    torch = pytest.importorskip("torch")
    ids, mask = torch.zeros((2, 4), dtype=torch.long), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    for kind in (torch.long, torch.bool, torch.float32):
        counted = row_lengths(ids, mask.to(kind))
        assert counted == (4, 2)
        assert {type(n) for n in counted} == {int}
    assert row_lengths(ids, None) == (4, 4)
    assert host_rows(ids, 3) == [[0], [0]]


def test_nothing_is_read_from_a_device():
    """Values on a device are not asked for: lengths are then unknown, unless there is one row, and so are rows."""
    torch = pytest.importorskip("torch")
    ids = torch.zeros((2, 9), dtype=torch.long, device="meta")  # a tensor without values: reading raises
    assert row_lengths(ids, ids) == (None, None)
    assert row_lengths(ids[:1], ids[:1]) == (9,)
    assert row_lengths(ids, None) == (9, 9)
    assert host_rows(ids, 4) is None
