"""What a span says beyond its times, in words: tokens, steps, latencies, how it ended, what went wrong."""

from __future__ import annotations

import base64
import struct
from typing import TYPE_CHECKING, Any

from rich.text import Text

from axonize_core import attributes as names
from axonize_server import units

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from axonize_server.client import Span

__all__ = ["span_notes"]

_CHUNKS_LISTED = 6


def span_notes(span: Span) -> list[Text]:
    """Return the notes of one span, errors in red; empty where it says nothing."""
    values = span["attributes"]
    notes = [*_tokens(values), *_steps(values), *_step(values), *_times(values), *_end(values)]
    if span["links"]:
        notes.append(f"links to {len(span['links'])} spans")
    return [*(Text(note) for note in notes if note), *_errors(span)]


def _tokens(values: Mapping[str, Any]) -> list[str]:
    cached = values.get(names.CACHED_TOKENS)
    discarded = values.get(names.DISCARDED_TOKENS)
    return [
        _counted(values.get(names.INPUT_TOKENS), "token", " in" + (f" ({cached:,} cached)" if cached else "")),
        _counted(
            values.get(names.OUTPUT_TOKENS), "token", " out" + (f" ({discarded:,} discarded)" if discarded else "")
        ),
        _counted(values.get(names.RECOMPUTED_TOKENS), "token", " recomputed"),
        _drafts(values.get(names.DRAFTED_TOKENS), values.get(names.ACCEPTED_TOKENS)),
    ]


def _drafts(drafted: int | None, accepted: int | None) -> str:
    if accepted is None:
        return ""
    return f"{accepted:,} of {units.count(drafted)} drafts accepted" if drafted else f"{accepted:,} drafts accepted"


def _steps(values: Mapping[str, Any]) -> list[str]:
    """Return how many steps a phase took, and those in which chunks of a prompt were computed."""
    steps = _unpacked(values.get(names.CHUNK_STEP), "Q")
    tokens = _unpacked(values.get(names.CHUNK_TOKENS), "I")
    chunks = f"chunks of {_listed(tokens)} tokens" if len(tokens) > 1 else ""
    return [
        _counted(values.get(names.STEPS), "step"),
        chunks,
        f"in batch{'es' if len(steps) > 1 else ''} {_ranges(steps)}" if steps else "",
    ]


def _listed(tokens: Sequence[int]) -> str:
    """Return numbers as a sum; of many the first ones and the last."""
    shown = [f"{number:,}" for number in tokens]
    if len(shown) > _CHUNKS_LISTED:
        shown = [*shown[: _CHUNKS_LISTED - 2], "…", shown[-1]]
    return " + ".join(shown)


def _ranges(steps: Sequence[int]) -> str:
    """Return rising numbers with those that follow one another as ranges; of many ranges the ends."""
    found: list[list[int]] = []
    for step in steps:
        if found and step == found[-1][-1] + 1:
            found[-1] = [found[-1][0], step]
        else:
            found.append([step])
    if len(found) > _CHUNKS_LISTED:
        return f"{steps[0]} … {steps[-1]}"
    return ", ".join("-".join(map(str, ends)) for ends in found)


def _step(values: Mapping[str, Any]) -> list[str]:
    """Return what an engine step says of itself."""
    usage = values.get(names.BATCH_KV_CACHE_USAGE)
    return [
        _counted(values.get(names.BATCH_SIZE), "request"),
        _titled("prefill", values.get(names.BATCH_PREFILL_TOKENS)),
        _titled("decode", values.get(names.BATCH_DECODE_TOKENS)),
        _milliseconds(values.get(names.BATCH_SCHEDULE_MS), "schedule"),
        _milliseconds(values.get(names.BATCH_EXECUTE_MS), "execute"),
        _milliseconds(values.get(names.BATCH_UPDATE_MS), "update"),
        _titled("running", values.get(names.BATCH_RUNNING)),
        _titled("waiting", values.get(names.BATCH_WAITING)),
        "" if usage is None else f"KV cache {units.share(usage)}",
    ]


def _times(values: Mapping[str, Any]) -> list[str]:
    at_front_end = [
        _seconds(values.get(names.FRONTEND_TTFT_S), "TTFT"),
        _seconds(values.get(names.FRONTEND_E2E_S), "total"),
    ]
    at_front_end = [text for text in at_front_end if text]
    return [
        _seconds(values.get(names.LATENCY_TTFT_S), "TTFT"),
        _seconds(values.get(names.LATENCY_TPOT_S), "TPOT"),
        f"at the front end {', '.join(at_front_end)}" if at_front_end else "",
        _milliseconds(values.get(names.ITL_P50_MS), "between tokens p50"),
        _milliseconds(values.get(names.ITL_P99_MS), "p99"),
        _milliseconds(values.get(names.ITL_MAX_MS), "max"),
        _milliseconds(values.get(names.DEVICE_TIME_MS), "on the device"),
    ]


def _end(values: Mapping[str, Any]) -> list[str]:
    preemptions = values.get(names.PREEMPTIONS)
    return [
        f"preempted {preemptions} ×" if preemptions else "",
        _counted(values.get(names.KV_CACHE_BLOCKS), "KV block"),
        ", ".join(map(str, values.get(names.ADAPTERS) or ())),
        _titled("choice", values.get(names.CHOICE_INDEX)),
        ", ".join(map(str, values.get(names.FINISH_REASONS) or ())),
        "incomplete" if values.get(names.INCOMPLETE) else "",
    ]


def _errors(span: Span) -> list[Text]:
    if span["status"] != "error":
        return []
    said = [span["attributes"].get(names.ERROR_TYPE), span["status_message"]]
    return [Text(": ".join(dict.fromkeys(str(part) for part in said if part)) or "error", "red")]


def _unpacked(value: Any, code: str) -> tuple[int, ...]:
    """Return the little-endian integers of a bytes attribute, as the API gives it."""
    if not isinstance(value, dict):
        return ()
    data = base64.b64decode(value.get("$bytes", ""))
    count = len(data) // struct.calcsize(f"<{code}")
    return struct.unpack_from(f"<{count}{code}", data)


def _titled(title: str, value: int | None) -> str:
    return "" if value is None else f"{title} {value:,}"


def _counted(value: Any, noun: str, direction: str = "") -> str:
    return "" if value is None else units.plural(value, noun) + direction


def _seconds(value: Any, title: str) -> str:
    return "" if value is None else f"{title} {units.duration(value * 1000)}"


def _milliseconds(value: Any, title: str) -> str:
    return "" if value is None else f"{title} {units.duration(value)}"
