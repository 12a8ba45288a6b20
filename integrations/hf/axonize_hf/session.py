"""One call of a pipeline, as requests.

``preprocess`` opens one request per item, ``forward`` runs those that wait as one batch, ``postprocess`` closes
them in their order; all three are pulled by one iterator, so the order is the items'.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from typing import TYPE_CHECKING, Any

from axonize_core.recorder import get_recorder
from axonize_hf._supported import TASKS
from axonize_hf.context import context_at, current_contexts
from axonize_hf.encoder import Forward, input_lengths
from axonize_hf.run import Batch, close_request, current_batch, guarded, open_request
from axonize_hf.tokens import StopRules, count_rows

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Session", "Stage"]


class Stage:
    """A stage bound to the session of one call; sent to a worker process it is the plain stage again."""

    def __init__(self, session: Session, name: str, original: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original)
        self._session = session
        self._name = name
        self._original = original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stage, recorded where the call was made; a forked worker has no part in its records."""
        if os.getpid() != self._session.pid:
            return self._original(*args, **kwargs)
        record: Callable[..., Any] = getattr(self._session, self._name)
        return record(self._original, args, kwargs)

    def __reduce__(self) -> Any:
        return getattr, (self._session.pipe, self._name)


class _Item:
    """One input of a call; the rules say how to count what was generated for it."""

    def __init__(self, seq: int, input_tokens: int | None = None) -> None:
        self.seq = seq
        self.input_tokens = input_tokens
        self.rules: StopRules | None = None


class Session:
    """The items of one call of a pipeline. One thread at a time, that of whoever pulls the results."""

    def __init__(self, pipe: Any, source: int) -> None:
        self.pipe = pipe
        self.pid = os.getpid()
        self.called_ns: int | None = get_recorder().clock()
        self._source = source
        self._task = TASKS[pipe.task]
        self._contexts = current_contexts()
        self._items = 0
        self._waiting: deque[_Item] = deque()
        self._served: deque[_Item] = deque()

    def __del__(self) -> None:
        # Whoever stopped pulling left computed items behind; how they would have ended is unknown.
        if getattr(self, "pid", None) == os.getpid():
            self.abandon(None)

    def preprocess(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Open the item's request and prepare its inputs."""
        item = self._open(args[0] if args else None)
        try:
            inputs = original(*args, **kwargs)
        except BaseException as error:
            self.abandon(error)
            raise
        self._measure(item, inputs)
        return inputs

    def forward(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run what waits as one batch."""
        batch = self._batch(args[0] if args else None)
        if batch is None:
            return original(*args, **kwargs)
        token = current_batch.set(batch)
        run = None if self._task.generates else _forward(self.pipe, batch)
        failure: BaseException | None = None
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            failure = error
            raise
        finally:
            current_batch.reset(token)
            if run is not None:
                run.end(failure)
            self._serve(batch, failure)

    def postprocess(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Shape the item's answer and close its request."""
        item = self._served.popleft() if self._served else None
        try:
            result = original(*args, **kwargs)
        except BaseException as error:
            self._close(item, error=error)
            raise
        self._close(item, args[0] if args else None)
        return result

    @guarded("hf.pipeline.abandon")
    def abandon(self, error: BaseException | None) -> None:
        """Close every request that is still open: its caller gets this error, or asks no more."""
        for items in (self._waiting, self._served):
            while items:
                item = items.popleft()
                close_request(item.seq, item.input_tokens, error=error)

    @guarded("hf.pipeline.item")
    def _open(self, given: Any) -> _Item:
        arrived_ns = self.called_ns or get_recorder().clock()
        # The class is not exported by every supported version, but has had this name in all of them.
        operation = "chat" if type(given).__name__ == "Chat" else self._task.operation
        context = context_at(self._contexts, self._items)
        self._items += 1
        item = _Item(open_request(self._source, context, arrived_ns, operation, None))
        self._waiting.append(item)
        return item

    @guarded("hf.pipeline.measure")
    def _measure(self, item: _Item | None, inputs: Any) -> None:
        if item is not None:
            lengths = input_lengths(inputs)
            item.input_tokens = sum(n for n in lengths if n is not None) if None not in lengths else None

    @guarded("hf.pipeline.batch")
    def _batch(self, inputs: Any) -> Batch | None:
        if not self._waiting:
            self._adopt(inputs)
        members = tuple(self._waiting)
        return Batch(self._source, tuple(i.seq for i in members), [i.input_tokens for i in members])

    def _adopt(self, inputs: Any) -> None:
        """Open the requests of items that worker processes prepared: first seen when they are run."""
        for tokens in input_lengths(inputs):
            item = self._open(None)
            if item is not None:
                item.input_tokens = tokens

    @guarded("hf.pipeline.serve")
    def _serve(self, batch: Batch, failure: BaseException | None) -> None:
        if failure is not None:
            self.abandon(failure)
        while self._waiting:
            item = self._waiting.popleft()
            item.rules = batch.rules
            self._served.append(item)

    @guarded("hf.pipeline.close")
    def _close(self, item: _Item | None, outputs: Any = None, error: BaseException | None = None) -> None:
        if item is not None:
            counted = _count(outputs, item.rules) if error is None else None
            close_request(item.seq, item.input_tokens, counted or (None, None), error)


@guarded("hf.pipeline.forward")
def _forward(pipe: Any, batch: Batch) -> Forward:
    return Forward(pipe, batch)


@guarded("hf.pipeline.count")
def _count(outputs: Any, rules: StopRules | None) -> tuple[int, str] | None:
    """Count what was generated for one item, on the copy in host memory that the pipeline made anyway."""
    if rules is None:
        return None
    prompt = outputs["input_ids"]
    prefix = 0 if prompt is None else prompt.shape[-1]
    return count_rows(outputs["generated_sequence"][0][:, prefix:].tolist(), rules)
