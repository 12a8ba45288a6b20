"""vLLM's scheduler as records: four methods of each instance, on the engine core's thread.

What runs there for a step is ``schedule`` and ``update_from_output`` below: four clock readings, one comparison of two
lists, one record; 13 times a second it also hands over what waits. vLLM makes a new SchedulerOutput for each step and
changes none afterwards, so records refer to its parts. It plans ahead of the steps that run (async scheduling, pipeline
parallelism): plans wait here for their outputs.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from axonize_core.frames import Kind, Record
from axonize_core.recorder import get_recorder
from axonize_core.settings import get_settings
from axonize_vllm import requests
from axonize_vllm._supported import missing
from axonize_vllm.source import engine_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from axonize_core.recorder import Recorder

    _Changes = tuple[Any, Any, Any, Any]

__all__ = ["instrument", "record", "release"]

logger = logging.getLogger("axonize")

MOST_REPEATS = 100
"""Steps that say "the same members as before" in a row, so that one lost record is soon made good."""
MOST_MEMBERS = 262_144
"""Members of all steps that may wait for the shipper: about 20 MB."""
MOST_PLANS = 64
_METHODS = ("add_request", "schedule", "update_from_output", "finish_requests")
_MARK = "_axonize_recorded"
_NUMBER = "axonize_step"
_STEP = int(Kind.STEP)
_AS_BEFORE: _Changes | None = (None, None, None, None)


def instrument() -> None:
    """Record every scheduler that this process makes from now on."""
    from vllm.config.scheduler import SchedulerConfig  # noqa: PLC0415 - the user's

    original = SchedulerConfig.get_scheduler_cls
    if not hasattr(original, _MARK):

        @functools.wraps(original)
        def get_scheduler_cls(self: Any) -> Any:
            picked = original(self)
            try:
                return _recorded_class(picked)
            except Exception:
                get_recorder().count_error("vllm.scheduler")
                logger.warning("axonize: steps and requests of this engine are not recorded", exc_info=True)
                return picked

        setattr(get_scheduler_cls, _MARK, original)
        SchedulerConfig.get_scheduler_cls = get_scheduler_cls


def _recorded_class(scheduler_class: type) -> type:
    """Return a subclass whose instances record themselves; the class itself stays as it is."""
    if hasattr(scheduler_class, _MARK):
        return scheduler_class

    class Recorded(scheduler_class):  # type: ignore[misc] # known at run time only
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            try:
                record(self)
            except Exception:
                get_recorder().count_error("vllm.scheduler")
                logger.warning("axonize: steps and requests of this engine are not recorded", exc_info=True)

    setattr(Recorded, _MARK, True)
    Recorded.__name__, Recorded.__qualname__ = scheduler_class.__name__, scheduler_class.__qualname__
    Recorded.__module__ = scheduler_class.__module__
    return Recorded


def record(scheduler: Any) -> None:
    """Record this scheduler's requests and steps from now on."""
    recorder = get_recorder()
    source = engine_source(scheduler.vllm_config)
    watch = _Requests(scheduler, recorder, source)
    schedule, update_from_output = _steps(scheduler, recorder, source, watch)
    scheduler.add_request, scheduler.finish_requests = watch.add_request, watch.finish_requests
    scheduler.schedule, scheduler.update_from_output = schedule, update_from_output
    # Now, so that the agent knows this engine before its first request, however soon it dies.
    recorder.start()


def release(scheduler: Any) -> None:
    """Undo ``record``; requests that are live stay unfinished."""
    for name in _METHODS:
        scheduler.__dict__.pop(name, None)


class _Requests:
    """The live requests of one scheduler, from ``add_request`` until it lets go of them."""

    def __init__(self, scheduler: Any, recorder: Recorder, source: int) -> None:
        self._scheduler = scheduler
        self._recorder = recorder
        self._source = source
        self._add_request = scheduler.add_request
        self._finish_requests = scheduler.finish_requests
        self._live: dict[str, tuple[int, Any]] = {}
        self._told: dict[str, int] | None = None
        """Who was in the step before, and with how many tokens."""
        self._block_size = getattr(scheduler.vllm_config.cache_config, "block_size", None)

    def add_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Record a request; further input for one that lives belongs to that one."""
        try:
            if request.request_id not in self._live:
                handle = self._recorder.next_handle()
                payload = requests.opened(self._source, request, self._recorder.clock())
                self._recorder.emit(Kind.REQUEST, handle, payload)
                self._live[request.request_id] = (handle, request)
        except Exception:  # noqa: BLE001 - nothing of ours may reach the engine
            self._recorder.count_error("vllm.add_request")
        return self._add_request(request, *args, **kwargs)

    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        """Let the scheduler end requests from outside: an abort, most of the time."""
        result = self._finish_requests(*args, **kwargs)
        try:
            self.end_finished()
        except Exception:  # noqa: BLE001 - same
            self._recorder.count_error("vllm.finish_requests")
        return result

    def end_finished(self) -> None:
        """Record the end of those that the scheduler let go of since its last step; each of them once."""
        for engine_id in self._scheduler.finished_req_ids:
            known = self._live.pop(engine_id, None)
            if known is not None:
                handle, request = known
                self._recorder.emit(Kind.REQUEST_END, handle, requests.ended(request, self._block_size))

    def changes(self, output: Any, outputs: Any, *, repeat: bool) -> _Changes | None:
        """Return what a step tells beside its times, None for one not worth telling, or too much to keep.

        That is who is in it and where their tokens begin (None: the same as before, if ``repeat`` allows that), who is
        new in it, who had to leave, and what it verified of drafts.
        """
        members, preempted, new = output.num_scheduled_tokens, output.preempted_req_ids, output.scheduled_new_reqs
        told, self._told = self._told, None
        if not members and not preempted:
            return None
        if self._recorder.queued() * len(members) > MOST_MEMBERS:
            self._recorder.count_dropped(1)
            return None
        cached = output.scheduled_cached_reqs
        changes = (
            None if repeat and members == told and not new else (members, cached.req_ids, cached.num_computed_tokens),
            self.place(new) if new else None,
            tuple(preempted) if preempted else None,
            _drafts(output, outputs) if output.scheduled_spec_decode_tokens else None,
        )
        self._told = members  # not before: a step that fails above is not told
        return changes

    def place(self, new: list[Any]) -> tuple[tuple[str, int, int], ...]:
        """Return what was computed before of requests that are scheduled for the first time, and their prompts."""
        # By our own list: the scheduler has let go of those that ended in this very step. One that was aborted while
        # the step ran is in neither, and its prompt is not needed any more.
        told = ((data, self._live.get(data.req_id)) for data in new)
        return tuple(
            (data.req_id, data.num_computed_tokens, 0 if known is None else known[1].num_prompt_tokens)
            for data, known in told
        )


def _steps(  # noqa: C901 - the hot path is one function
    scheduler: Any, recorder: Recorder, source: int, watch: _Requests
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return what stands for ``schedule`` and ``update_from_output`` of this scheduler.

    Closures and not methods: this is the hot path, and local names are the fastest. Between a model's steps each piece
    costs several times what it costs in a loop (docs/adr/0010): most steps call nothing of ours.
    """
    original_schedule, original_update = scheduler.schedule, scheduler.update_from_output
    clock, queue, append, record = recorder.clock, recorder.queue, recorder.append, Record
    plans: deque[tuple[Any, int, int]] = deque(maxlen=MOST_PLANS)
    plan, next_plan = plans.append, plans.popleft
    waiting, held = _waiting(scheduler)
    kv_cache, all_blocks = _kv_cache(scheduler)
    last: list[str] | None = None
    repeats = step = ship_at_ns = 0
    number = _numbered(recorder) if get_settings().vllm_device_time else None
    hand_over = _hand_over(recorder)

    def schedule(*args: Any, **kwargs: Any) -> Any:
        start_ns = clock()
        output = original_schedule(*args, **kwargs)
        if number is not None:
            number(output)
        plan((output, start_ns, clock()))
        return output

    # Named as vLLM names them: a call through *args costs 0.14 us more, so only what later versions add goes that way.
    def update_from_output(scheduler_output: Any, model_runner_output: Any, *more: Any, **named: Any) -> Any:
        nonlocal last, repeats, step, ship_at_ns
        update_ns = clock()
        if more or named:
            outputs = original_update(scheduler_output, model_runner_output, *more, **named)
        else:
            outputs = original_update(scheduler_output, model_runner_output)
        try:
            planned, start_ns, scheduled_ns = next_plan()
            while planned is not scheduler_output:  # an engine that gave a step up
                planned, start_ns, scheduled_ns = next_plan()
            ids, tokens = planned.scheduled_cached_reqs.req_ids, planned.total_num_scheduled_tokens
            # A token each for the same requests in the same order: so nobody is new, and there are no drafts.
            if ids == last and tokens == len(ids) and not planned.preempted_req_ids and repeats < MOST_REPEATS:
                repeats += 1
                facts = _AS_BEFORE
            else:
                facts = watch.changes(planned, outputs, repeat=repeats < MOST_REPEATS)
                repeats = repeats + 1 if facts and facts[0] is None else 0
                last = ids if facts and ids and tokens == len(ids) else None
            if facts:
                told, started, preempted, drafts = facts
                step = step + 1 if number is None else getattr(planned, _NUMBER, step + 1)
                payload = (
                    source,
                    start_ns,
                    scheduled_ns,
                    update_ns,
                    told,
                    started,
                    preempted,
                    drafts,
                    len(scheduler.running),
                    waiting() + held(),
                    1.0 - kv_cache.num_free_blocks / all_blocks if all_blocks else None,
                )
                if len(queue) < recorder.limit:  # as emit, without its call
                    append(record(_STEP, step, payload, clock()))
                else:
                    recorder.emit(_STEP, step, payload)
            if scheduler.finished_req_ids:
                watch.end_finished()
            if update_ns >= ship_at_ns:
                ship_at_ns = hand_over(step, start_ns, update_ns)
        except Exception:  # noqa: BLE001 - nothing of ours may reach the engine
            recorder.count_error("vllm.step")
        return outputs

    return schedule, update_from_output


def _hand_over(recorder: Recorder) -> Callable[[int, int, int], int]:
    """Return what ships between two steps and says when it wants to be called again.

    That is so early that one more step of that length ends in time, else our own thread wakes up in the middle of it.
    """
    before_ns = before = 0

    def hand_over(step: int, start_ns: int, update_ns: int) -> int:
        nonlocal before_ns, before
        due_ns = recorder.ship_here()
        # A step that was planned ahead is longer than what it adds; the mean is of no use after a pause.
        step_ns = min(update_ns - start_ns, (update_ns - before_ns) // max(1, step - before))
        before_ns, before = update_ns, step
        return due_ns - step_ns * 3 // 2

    return hand_over


def _numbered(recorder: Recorder) -> Callable[[Any], None]:
    """Return what numbers an output: it travels to the workers as it is, and with it which step they measure."""
    count = itertools.count(1)

    def number(output: Any) -> None:
        step = next(count)
        try:
            setattr(output, _NUMBER, step)
        except Exception:  # noqa: BLE001 - nothing of ours may reach the engine
            recorder.count_error("vllm.step_number")

    return number


def _drafts(output: Any, outputs: Any) -> dict[str, tuple[int, int]]:
    """Return the tokens drafted and the tokens that came out, of the members whose drafts a step verified."""
    came = {one.request_id: len(one.new_token_ids) for those in outputs.values() for one in those.outputs}
    return {
        engine_id: (len(drafts), came.get(engine_id, 0))
        for engine_id, drafts in output.scheduled_spec_decode_tokens.items()
    }


def _nothing() -> int:
    return 0


def _waiting(scheduler: Any) -> tuple[Callable[[], int], Callable[[], int]]:
    """Return the lengths of the two queues of those that wait, the second of another name in each version."""
    held = getattr(scheduler, "kv_holding_waiting", None)
    held = getattr(scheduler, "skipped_waiting", None) if held is None else held
    return _length(scheduler.waiting), _nothing if held is None else _length(held)


def _length(queue: Any) -> Callable[[], int]:
    """Return what tells its length: vLLM's queue asks deque's through super(), 0.1 us each time."""
    length: Callable[[], int] = deque.__len__.__get__(queue) if isinstance(queue, deque) else queue.__len__
    return length


def _kv_cache(scheduler: Any) -> tuple[Any, int]:
    """Return what counts the free blocks of the KV cache, and how many there are beside the null block; 0: unknown."""
    if missing("kv_cache_usage"):
        return None, 0
    pool = scheduler.kv_cache_manager.block_pool
    return pool.free_block_queue, max(0, pool.num_gpu_blocks - 1)
