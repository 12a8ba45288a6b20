"""One cell of the matrix: the same use of the same tiny model, plain and instrumented, compared."""

from __future__ import annotations

import contextlib
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

import axonize_hf
from axonize_core.recorder import get_recorder
from axonize_core.testing import capture_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from axonize_core.testing import CapturedEvents

__all__ = ["UNCHECKED", "Case", "Expected", "run_case"]

UNCHECKED: Any = object()


class Expected(NamedTuple):
    """What the events say of one use; token counts are per request.

    ``tokens``: None where nothing is generated, or what makes them out of the plain output.
    ``counted``: there is a batch event for each forward of the model that the plain run made.
    """

    prompt: Any = UNCHECKED
    tokens: Any = None
    requests: int = 1
    finish: Any = None
    operation: str = "text_completion"
    prefill_steps: Any = 1
    counted: bool = True


class Case(NamedTuple):
    """A row: what is made, how it is used, and what has to be seen of it."""

    task: str
    mode: str
    make: Callable[[], Any]
    use: Callable[[Any], Any]
    expected: Expected


def run_case(case: Case) -> tuple[str, str]:
    """Return ``ok``, ``unsupported`` (what the library itself raises) or ``failed``, and why."""
    try:
        plain, forwards = _plain(case)
    except Exception as error:
        return "unsupported", _sentence(error)
    try:
        wrong = list(_compare(case, plain, forwards))
    except Exception:
        return "failed", traceback.format_exc()
    return ("failed", "; ".join(wrong)) if wrong else ("ok", "")


def _sentence(error: Exception) -> str:
    """Return the first sentence of what the library says, without what differs from run to run."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if "Original Traceback" in text:
        # A worker process sends its whole traceback; the error is its last line.
        return text.strip().splitlines()[-1].replace("'", "")
    first = " ".join(text.split()).split(". ", 1)[0].split(", available", 1)[0]
    return f"{type(error).__name__}: {first}".rstrip(".")


def _plain(case: Case) -> tuple[Any, int]:
    target = case.make()
    if not case.expected.counted:
        return _use(case, target), 0
    with _forwards(target) as forwards:
        return _use(case, target), len(forwards)


def _use(case: Case, target: Any) -> Any:
    torch.compiler.reset()
    torch.manual_seed(7)
    return case.use(target)


@contextlib.contextmanager
def _forwards(target: Any) -> Iterator[list[int]]:
    """Count the forwards of the model in a target, by its head if it has one: chunks of a prompt pass ``__call__`` by."""
    seen: list[int] = []
    model = target.model if hasattr(target, "postprocess") else target
    head = model.get_output_embeddings() if model.can_generate() else None
    handle = (model if head is None else head).register_forward_pre_hook(lambda *_: seen.append(1))
    try:
        yield seen
    finally:
        handle.remove()


def _compare(case: Case, plain: Any, forwards: int) -> Iterator[str]:
    target = axonize_hf.instrument(case.make())
    get_recorder().errors.clear()
    with capture_events() as seen:
        output = _use(case, target)
        if not same(plain, output):
            yield f"outputs differ: {plain!r} and {output!r}"
    expected = case.expected
    if callable(expected.tokens):
        expected = expected._replace(tokens=expected.tokens(plain))
    yield from _differences(expected, seen, forwards)
    if get_recorder().errors:
        yield f"errors counted: {dict(get_recorder().errors)}"


def _differences(expected: Expected, seen: CapturedEvents, forwards: int) -> Iterator[str]:
    """Yield each fact of the events that is not as expected."""
    found, count = seen.requests, expected.requests
    none = expected.tokens is None
    facts: dict[str, tuple[Any, Any]] = {
        "operations": ([r.operation for r in found], [expected.operation] * count),
        "failed or incomplete": ([r.ref.seq for r in found if r.error or r.incomplete], []),
        "input tokens": ([r.input_tokens for r in found], expected.prompt),
        "output tokens": ([r.output_tokens for r in found], [None] * count if none else expected.tokens),
        "finish reasons": ([r.finish_reason for r in found], _each(expected.finish, count)),
        "phases out of order": ([r.ref.seq for r in found if not _ordered(r)], []),
        "prefill steps": ([p.steps for p in seen.prefills], _each(expected.prefill_steps, count)),
        "prefills": (len(seen.prefills), count),
        "decodes": (len(seen.decodes), 0 if none else count),
        "steps": (len(seen.batches), forwards if expected.counted else UNCHECKED),
        "joins": (sum(len(b.joined) for b in seen.batches), count if expected.counted else UNCHECKED),
    }
    for name, (is_so, should) in facts.items():
        if should is not UNCHECKED and is_so != (list(should) if isinstance(should, tuple) else should):
            yield f"{name}: {is_so}, expected {should}"


def _each(value: Any, count: int) -> Any:
    return value if value is UNCHECKED else [value] * count


def _ordered(request: Any) -> bool:
    times = [0, request.queue_ns, request.ttft_ns, request.duration_ns]
    known = [t for t in times if t is not None]
    return known == sorted(known)


def same(a: Any, b: Any) -> bool:
    """Say whether two outputs are identical, through lists, dicts, tensors, arrays and pictures."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and bool(np.array_equal(a, b))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
