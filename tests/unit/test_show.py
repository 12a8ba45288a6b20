"""What the tables and the waterfall look like."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from axonize_server import show
from axonize_server.waterfall import print_trace
from fix_api import SIMULATED, api_batch, api_failed_request, api_preempted_trace, api_request, api_span, api_trace


@pytest.fixture(autouse=True)
def _utc(monkeypatch):
    """Times are shown in the local zone; here it is UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def _terminal(width):
    return Console(width=width, force_terminal=True, color_system=None, highlight=False, file=io.StringIO())


def _printed(print_it, shown, *, width=None):
    """Return the lines printed on a terminal of that width, or when piped."""
    console = _terminal(width) if width else Console(width=100_000, highlight=False, file=io.StringIO())
    print_it(console, shown)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


LOAD = [api_request(n) for n in range(3)] + [api_failed_request(3), api_request(4, incomplete=True)]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_every_line_fits_the_terminal_and_nothing_is_cut(width):
    """Columns give way whole: no row wraps, no latency ends in an ellipsis."""
    lines = _printed(show.print_requests, LOAD, width=width)
    assert max(map(len, lines)) <= width
    assert len([line for line in lines if ":20:0" in line]) == len(LOAD)
    assert all("12.5 ms  41.2 ms  4.71 ms" in line for line in lines if "length" in line)


def test_what_all_rows_share_stands_once_above_the_table():
    """Service and model move out of the way when they tell nothing apart."""
    lines = _printed(show.print_requests, LOAD[:3], width=100)
    assert lines[0].startswith("3 requests · service axonize-demo · model tiny-llama · on GPU-5a1ad000-…")
    assert "tiny-llama" not in "".join(lines[1:])


def test_models_that_differ_get_a_column_where_it_fits():
    """On a wide terminal each row names its model, on a narrow one the heading lists them."""
    load = [api_request(1), api_request(2, model="meta-llama/Llama-3.1-8B")]
    wide, narrow = (_printed(show.print_requests, load, width=width) for width in (160, 80))
    assert "meta-llama/Llama-3.1-8B" in wide[-1]
    assert any("model tiny-llama, meta-llama/Llama-3.1-8B" in line for line in narrow[:3])


@pytest.mark.parametrize("width", [80, 100, 160, None])
def test_a_simulated_device_says_so_at_every_width(width):
    """Whether as column or in the heading, the label never gives way."""
    assert "(simulated)" in "\n".join(_printed(show.print_requests, LOAD, width=width))


def test_a_failed_request_names_its_error_and_leaves_unknowns_open():
    """What never happened is a dash, not a zero."""
    (row,) = [line for line in _printed(show.print_requests, LOAD, width=80) if "ValueError" in line]
    assert row.split()[3:] == ["–", "–", "–", "24", "–", "840", "µs"]


def test_an_incomplete_request_is_marked():
    """A duration that may be too short is not shown as if it were sound."""
    assert "incomplete" in _printed(show.print_requests, LOAD, width=80)[-1]


def test_a_queue_that_somebody_else_measured_says_who():
    """Triton's own spans know it, the model's process does not."""
    told = [api_request(1, queue_ms=7.0, queue_provenance="triton"), api_request(2)]
    first, second = _printed(show.print_requests, told, width=120)[-2:]
    assert "7.00 ms (triton)" in first
    assert "(engine)" not in second


def test_piped_ids_are_whole_and_times_dated():
    """A script gets all there is: full trace ids and device uuids."""
    lines = _printed(show.print_requests, LOAD)
    assert LOAD[0]["trace_id"] in lines[3]
    assert SIMULATED in lines[3]
    assert lines[3].startswith("2026-03-01 ")


def test_a_part_of_the_requests_is_called_a_part():
    """The heading counts what is shown and what there is."""
    lines = _printed(lambda console, shown: show.print_requests(console, shown, most=2), LOAD, width=100)
    assert lines[0].startswith("2 of 5 requests · ")
    assert len([line for line in lines if ":20:0" in line]) == 2


def test_short_ids_are_long_enough_to_tell_apart():
    """Two ids that begin alike are cut later."""
    short = show.short_ids(_terminal(80), ["aaaaaaaaaa1", "aaaaaaaaaa2", None])
    assert (short("aaaaaaaaaa1"), short("aaaaaaaaaa2"), short(None)) == ("aaaaaaaaaa1", "aaaaaaaaaa2", "–")


@pytest.mark.parametrize(
    ("print_it", "text"), [(show.print_requests, "no requests"), (show.print_batches, "no batches")]
)
def test_nothing_found_is_said(print_it, text):
    """An empty answer is a sentence, not an empty table."""
    assert _printed(print_it, [], width=80) == [text]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_batches_fit(width):
    """Steps list how many requests and tokens they held."""
    lines = _printed(show.print_batches, [api_batch(step) for step in range(3)], width=width)
    assert max(map(len, lines)) <= width
    assert lines[-1].split()[-6:] == ["2", "3", "0", "3", "4.25", "ms"]


STEP = {
    "schedule_ms": 0.0757,
    "execute_ms": 4.08,
    "update_ms": 0.095,
    "running": 31,
    "waiting": 12,
    "kv_cache_usage": 0.3725,
}


@pytest.mark.parametrize("width", [80, 120])
def test_steps_say_who_waits_and_how_full_the_cache_is_at_every_width(width):
    """On a wide terminal also where each step's time went; the table never outgrows it."""
    lines = _printed(show.print_batches, [api_batch(step, **STEP) for step in range(3)], width=width)
    assert max(map(len, lines)) <= width
    assert lines[-1].split()[-4:] == ["31", "12", "37.2", "%"]
    assert ("75.7 µs" in lines[-1], "95.0 µs" in lines[-1]) == (width == 120, width == 120)


def test_engines_that_say_nothing_of_their_steps_have_no_empty_columns():
    """Piped, a script gets all columns all the same."""
    steps = [api_batch(step) for step in range(3)]
    assert "wait" not in " ".join(_printed(show.print_batches, steps, width=160))
    assert "device" in _printed(show.print_batches, steps)[1].split()


@pytest.mark.parametrize("width", [80, 120])
def test_a_batch_says_where_its_time_went(width):
    """In the lines above its members, device time where it was measured."""
    lines = _printed(show.print_batch, api_batch(**STEP, device_ms=3.9), width=width)
    text = " ".join(lines)
    assert max(map(len, lines)) <= width
    assert "schedule 75.7 µs | execute 4.08 ms | update 95.0 µs | on the device 3.90 ms" in text
    assert "31 running, 12 waiting" in text
    assert "KV cache 37.2 %" in text


def test_an_abort_is_not_shown_as_a_success():
    """A client that went away is neither an error nor all right."""
    console = Console(width=160, force_terminal=True, color_system="standard", highlight=False, file=io.StringIO())
    show.print_requests(console, [api_request(1, finish_reason="abort"), api_request(2)])
    assert "\x1b[33mabort" in console.file.getvalue()
    assert "\x1b[32mlength" in console.file.getvalue()


def test_more_values_than_the_heading_holds_are_counted():
    """A heading lists three values and says how many more there are."""
    load = [api_request(n, model=f"organisation/a-rather-long-model-name-{n}") for n in range(5)]
    assert "and 2 more" in " ".join(_printed(show.print_requests, load, width=80)[:5])


def test_a_batch_lists_its_members():
    """A member whose request has not ended is there by its number."""
    lines = _printed(show.print_batch, api_batch(), width=80)
    assert lines[0] == "batch 41 · 2026-03-01 10:20:01.000 · 4.25 ms · 3 requests"
    assert lines[-2].split() == ["1", "0001bf92", "req-0001", "0", "1", "25"]
    assert lines[-1].split() == ["2", "–", "–", "0", "1", "26"]


def test_a_batch_without_a_device_claims_none():
    """The heading leaves out what is unknown."""
    lines = _printed(show.print_batch, api_batch(compute_resource=None, gpu_provenance=None), width=120)
    assert " on " not in lines[0]


@pytest.mark.parametrize("width", [40, 80, 100, 120, 200])
def test_a_waterfall_fits_and_its_bars_stand_where_the_spans_were(width):
    """A child's bar begins where its elder sibling's ends."""
    lines = _printed(print_trace, api_trace(), width=width)
    assert max(map(len, lines)) <= width
    queue, prefill, decode = (
        next(line for line in lines if name in line) for name in ("├─ queue", "├─ prefill", "└─ decode")
    )
    assert _end(queue) <= _start(prefill) + 1
    assert _end(prefill) <= _start(decode) + 1
    assert (_end(decode) - _start(decode)) > 3 * (_end(prefill) - _start(prefill))


def _start(line):
    return min(place for place, cell in enumerate(line) if cell in "━╸╺")


def _end(line):
    return max(place for place, cell in enumerate(line) if cell in "━╸╺") + 1


def test_a_waterfall_says_what_the_phases_did():
    """Tokens, steps and the spread between tokens stand below the bars."""
    text = "\n".join(_printed(print_trace, api_trace(), width=120))
    assert "24 tokens in · 32 tokens out · TTFT 41.2 ms · length" in text
    assert "24 tokens in · 1 step\n" in text
    assert "31 steps · between tokens p50 4.60 ms · p99 6.10 ms · max 7.25 ms" in text
    assert "(simulated)" in text


@pytest.mark.parametrize("width", [80, 120])
def test_a_preempted_request_is_drawn_with_its_gap(width):
    """Its phases stand one after the other, the second prefill and decode as well."""
    lines = _printed(print_trace, api_preempted_trace(), width=width)
    assert max(map(len, lines)) <= width
    phases = [line for line in lines if line.startswith(("├─", "└─"))]
    assert [line.split()[1] for line in phases] == ["queue", "prefill", "decode", "preempted", "prefill", "decode"]
    preempted, again = phases[3:5]
    assert _end(preempted) - _start(preempted) > 10
    assert _start(again) >= _end(preempted) - 1


def test_an_engine_of_several_devices_says_how_many():
    """The first is named, the others are counted."""
    trace = api_trace()
    for span in trace["spans"]:
        if "gpu.compute_resource.id" in span["attributes"]:
            span["attributes"]["gpu.compute_resource.ids"] = [SIMULATED, "GPU-1", "GPU-2"]
    assert "on GPU-5a1ad000-… (simulated) and 2 more" in " ".join(_printed(print_trace, trace, width=120))


def test_a_failed_span_says_why():
    """The error's type and message are shown, and the heading says error."""
    trace = api_trace()
    trace["spans"][0] |= {"status": "error", "status_message": "the engine died"}
    trace["spans"][0]["attributes"]["error.type"] = "engine_lost"
    text = "\n".join(_printed(print_trace, trace, width=120))
    assert "engine_lost: the engine died" in text
    assert " · error · " in text


def test_spans_of_strangers_are_shown_as_well():
    """A span nested deeper, one whose parent is elsewhere and one of no length all get a bar."""
    trace = api_trace()
    trace["spans"] += [
        api_span("http", 15, 3, span_id="f1", parent="00000000000000a3", phase=None, links=[{}, {}]),
        api_span("orphan", 20, 0, span_id="f2", parent="dead", phase=None),
    ]
    lines = _printed(print_trace, trace, width=100)
    (nested,) = [line for line in lines if line.startswith("│  └─ http")]
    (orphan, *_) = [line for line in lines if line.startswith("orphan")]
    assert _end(nested) > _start(nested)
    assert _end(orphan) == _start(orphan) + 1
    assert any("links to 2 spans" in line for line in lines)


def test_a_trace_of_no_time_is_drawn():
    """Spans without any length divide by nothing."""
    trace = {"trace_id": "a" * 32, "spans": [api_span("request", 0, 0, span_id="a1")]}
    assert any("0 ms" in line for line in _printed(print_trace, trace, width=80))


def test_a_trace_without_spans_is_said():
    """Nothing to draw is a sentence."""
    assert _printed(print_trace, {"trace_id": "a" * 32, "spans": []}, width=80) == [f"trace {'a' * 32} has no spans"]


def test_colours_mark_errors_and_simulation():
    """An error is red and a simulated device yellow, on a terminal only."""
    console = Console(width=160, force_terminal=True, color_system="standard", highlight=False, file=io.StringIO())
    show.print_requests(console, LOAD)
    text = console.file.getvalue()
    assert "\x1b[1;31mValueError" in text
    assert "\x1b[33m (simulated)" in text
    assert "\x1b" not in "".join(_printed(show.print_requests, LOAD))
