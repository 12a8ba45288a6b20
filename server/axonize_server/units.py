"""Values as people read them: durations, times, sizes and counts; an unknown is an en dash."""

from __future__ import annotations

from datetime import datetime, timezone

__all__ = ["UNKNOWN", "bytes_text", "clock", "count", "duration", "epoch_ns", "plural", "share"]

UNKNOWN = "–"
_US_PER_MS = 1000.0
_MS_PER_S = 1000.0
_KIB = 1024


def duration(ms: float | None) -> str:
    """Return a duration given in ms with three significant figures in µs, ms, s or min."""
    if ms is None:
        return UNKNOWN
    if abs(ms) < 0.9995:  # noqa: PLR2004  below it three figures still round to less than 1.00 ms
        return f"{_three(ms * _US_PER_MS)} µs" if ms else "0 ms"
    if abs(ms) < 999.5:  # noqa: PLR2004  likewise for 1.00 s
        return f"{_three(ms)} ms"
    seconds = ms / _MS_PER_S
    if abs(seconds) < 119.95:  # noqa: PLR2004  two minutes: from here minutes read better
        return f"{_three(seconds)} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _three(value: float) -> str:
    """Return a number below 1000 with three significant figures and no exponent."""
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0  # noqa: PLR2004
    return f"{value:.{digits}f}"


def count(value: int | None) -> str:
    """Return a count with thousands separators."""
    return UNKNOWN if value is None else f"{value:,}"


def share(value: float | None) -> str:
    """Return a share of 0 to 1 as a percentage with one decimal."""
    return UNKNOWN if value is None else f"{value * 100:.1f} %"


def plural(value: int, one: str, many: str = "") -> str:
    """Return a count with its noun, e.g. ``1 batch`` or ``2 batches``."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def bytes_text(value: int | None) -> str:
    """Return a size in bytes as B, KiB, MiB and so on."""
    if value is None:
        return UNKNOWN
    size, unit = float(value), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < _KIB:
            break
        size, unit = size / _KIB, larger
    return f"{value} B" if unit == "B" else f"{size:.1f} {unit}"


def epoch_ns(rfc3339: str) -> int:
    """Return an RFC 3339 UTC time of up to nine fractional digits as ns since the epoch."""
    whole, _, fraction = rfc3339.removesuffix("Z").removesuffix("+00:00").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=timezone.utc).timestamp())
    return seconds * 1_000_000_000 + int(fraction[:9].ljust(9, "0") or 0)


def clock(rfc3339: str, *, zone: timezone | None = None, date: bool = False) -> str:
    """Return a time to the millisecond in the local time zone (or ``zone``), with its date on request."""
    seconds, ns = divmod(epoch_ns(rfc3339), 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, tz=timezone.utc).astimezone(zone)
    return f"{moment:%Y-%m-%d %H:%M:%S}.{ns // 1_000_000:03d}"[0 if date else 11 :]
