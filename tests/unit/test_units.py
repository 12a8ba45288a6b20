"""Values as people read them."""

from __future__ import annotations

from datetime import timedelta, timezone

import pytest

from axonize_server import units


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "–"),
        (0, "0 ms"),
        (0.0004, "0.40 µs"),
        (0.84, "840 µs"),
        (0.9996, "1.00 ms"),
        (4.711, "4.71 ms"),
        (41.25, "41.2 ms"),
        (187.25, "187 ms"),
        (999.6, "1.00 s"),
        (61_500, "61.5 s"),
        (185_000, "3 min 5 s"),
    ],
)
def test_a_duration_has_three_figures_and_a_fitting_unit(ms, text):
    """µs, ms, s and min follow one another without a number above 999 of any."""
    assert units.duration(ms) == text


def test_unknowns_are_dashes_and_zero_is_zero():
    """An unknown is never shown as 0, nor 0 as unknown."""
    assert (units.count(None), units.count(0), units.bytes_text(None), units.bytes_text(0)) == (
        "–",
        "0",
        "–",
        "0 B",
    )


def test_counts_and_sizes_are_grouped():
    """Large numbers stay readable."""
    assert units.count(1234567) == "1,234,567"
    assert units.bytes_text(1536) == "1.5 KiB"
    assert units.bytes_text(5 * 1024**4) == "5.0 TiB"


@pytest.mark.parametrize(("number", "text"), [(1, "1 batch"), (0, "0 batches"), (2, "2 batches")])
def test_nouns_agree_with_their_count(number, text):
    """One batch, two batches."""
    assert units.plural(number, "batch", "batches") == text


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("2026-03-01T10:20:00.123456789Z", 1_772_360_400_123_456_789),
        ("2026-03-01T10:20:00.123456789+00:00", 1_772_360_400_123_456_789),
    ],
)
def test_no_nanosecond_of_a_time_is_lost(text, ns):
    """Times are parsed as integers, since a float would round them."""
    assert units.epoch_ns(text) == ns


def test_a_clock_time_is_local_and_cut_to_the_millisecond():
    """The zone shifts the hour, and the day with it."""
    zone = timezone(timedelta(hours=14))
    assert units.clock("2026-03-01T10:20:00.123999999Z", zone=zone) == "00:20:00.123"
    assert units.clock("2026-03-01T10:20:00.123999999Z", zone=zone, date=True) == "2026-03-02 00:20:00.123"
