"""What the engine core's thread does for us in each step of vLLM's scheduler; runs in the environment that has vLLM.

Real plans and outputs of a real scheduler, whose own two methods return at once. Minima of interleaved bursts, so that a
busy machine does not count; each is 250 steps, and what was recorded is thrown away between them.
"""

from __future__ import annotations

import dataclasses
import time

from bench_table import Row
from bench_vllm_engine import Load, make_engine, say_rows, scheduler_of
from opentelemetry.sdk.trace import TracerProvider

from axonize_core.recorder import get_recorder

BATCHES = (1, 8, 32, 256)
ROUNDS, ATTEMPTS = 100, 4
STEPS = 250
FIXED_NS, MEMBER_NS = 1000, 30
CLOCKS = 4


class Held:
    """Leaves the records where they are."""

    def start(self):
        pass

    def flush(self, timeout_s):
        return True

    def stop(self, timeout_s):
        return True

    def forget(self):
        pass

    def ship_here(self):
        return 2**63


def run() -> list[Row]:
    """Return the rows: per batch size, steps of the same members and steps whose members changed."""
    engine = make_engine(max(BATCHES))
    recorder = get_recorder()
    recorder.redirect(lambda _: Held())
    start_span = TracerProvider().get_tracer("bench").start_span
    rows = []
    for batch in BATCHES:
        same, outputs = capture(engine, batch)
        limit_ns, ns = FIXED_NS + (MEMBER_NS * batch if batch > 1 else 0), {}
        for _ in range(ATTEMPTS):
            measure(ns, scheduler_of(engine), outputs, {"same": same, "changed": changed(same)}, start_span)
            found = [row(batch, which, ns, limit_ns) for which in ("same", "changed")]
            if all(one.met for one in found):
                break
        rows += found
    assert not recorder.errors, recorder.errors
    return rows


def row(batch: int, which: str, ns: dict[str, float], limit_ns: int) -> Row:
    """Return one row; a step's own time is on/off in the paired rows, here is only what is added to it."""
    added_ns = ns[which] - ns["bare"]
    clock_ns = ns["clock"] - ns["loop"]
    return Row(
        name=f"vLLM, added per step, batch {batch}, members {which}",
        ours=f"{added_ns:.0f} ns",
        peer=f"{CLOCKS * clock_ns:.0f} ns",
        peer_name=f"{CLOCKS} clock readings alone; one OTel span here {(ns['span'] - ns['loop']) / 1e3:.1f} us",
        ratio=f"{added_ns / (CLOCKS * clock_ns):.1f} x",
        target=f"< {limit_ns / 1e3:.2f} us",
        met=added_ns < limit_ns,
    )


def capture(engine, batch: int):
    """Return plans of consecutive steps in which all of so many requests decode, and the outputs of one."""
    load, scheduler, plans, outputs = Load(engine, batch, answer_tokens=32), scheduler_of(engine), [], []
    schedule, update_from_output = scheduler.schedule, scheduler.update_from_output

    def kept_schedule(*args):
        plans.append(schedule(*args))
        return plans[-1]

    def kept_update(output, model_output):
        outputs.append(update_from_output(output, model_output))
        return outputs[-1]

    scheduler.schedule, scheduler.update_from_output = kept_schedule, kept_update
    load.fill()
    load.steps(load.answer_tokens - 1)
    del scheduler.schedule, scheduler.update_from_output
    load.wave()
    decoding = [
        (plan, output)
        for plan, output in zip(plans, outputs, strict=True)
        if len(plan.num_scheduled_tokens) == batch and not plan.scheduled_new_reqs
    ]
    # Steps that all decode and lie side by side: the very same members, in new dicts, as vLLM makes them.
    same = [plan for plan, _ in decoding if plan.num_scheduled_tokens == decoding[-1][0].num_scheduled_tokens]
    return same, decoding[-1][1]


def changed(plans):
    """Return the plans with every other one's last member at another number of tokens: the dearest to find and tell."""
    found = []
    for number, plan in enumerate(plans * 2):
        tokens = dict(plan.num_scheduled_tokens)
        tokens[next(reversed(tokens))] += number % 2
        total = sum(tokens.values())
        found.append(dataclasses.replace(plan, num_scheduled_tokens=tokens, total_num_scheduled_tokens=total))
    return found


def measure(best, scheduler, outputs, plans, start_span) -> None:
    """Lower the best ns per step: the bare methods, recorded with either kind of steps; a clock reading and a span."""
    from axonize_vllm.scheduler import record, release

    recorder = get_recorder()

    def keep(name, measured):
        best[name] = min(best.get(name, measured), measured)

    for _ in range(ROUNDS):
        keep("loop", burst(None))
        keep("clock", burst(time.perf_counter_ns))
        keep("span", spans(start_span))
        bare(scheduler, outputs)
        keep("bare", steps(scheduler, plans["same"]))
        for which, those in plans.items():
            bare(scheduler, outputs)
            record(scheduler)
            steps(scheduler, those)
            recorder_emptied(recorder)
            keep(which, steps(scheduler, those))
            recorder_emptied(recorder)
            release(scheduler)


def bare(scheduler, outputs) -> None:
    """Let the scheduler's methods do nothing; the plan of each step is put in front of it."""
    scheduler.finished_req_ids.clear()
    scheduler.schedule = lambda throttle: scheduler.bench_plan
    scheduler.update_from_output = lambda plan, model_output: outputs


def steps(scheduler, plans) -> float:
    """Return ns per step of one burst, called as the engine core calls them."""
    order = [plans[number % len(plans)] for number in range(STEPS)]
    clock = time.perf_counter_ns
    started_ns = clock()
    for plan in order:
        scheduler.bench_plan = plan
        scheduler.update_from_output(scheduler.schedule(False), None)
    return (clock() - started_ns) / STEPS


def recorder_emptied(recorder) -> None:
    while recorder.queued():
        recorder.take()


def burst(call) -> float:
    started_ns = time.perf_counter_ns()
    if call is None:
        for _ in range(STEPS):
            pass
    else:
        for _ in range(STEPS):
            call()
    return (time.perf_counter_ns() - started_ns) / STEPS


def spans(start_span) -> float:
    """Return ns per OTel span with five attributes."""
    started_ns = time.perf_counter_ns()
    for number in range(25):
        attributes = {"step": number, "members": 32, "running": 32, "waiting": 0, "kv": 0.5}
        start_span("batch", attributes=attributes).end()
    return (time.perf_counter_ns() - started_ns) / 25


if __name__ == "__main__":
    say_rows(run())
