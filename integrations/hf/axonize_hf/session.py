"""One call of a pipeline, as requests.

``preprocess`` opens one request per item, ``forward`` runs the chunks that wait as one batch, ``postprocess``
closes the items in their order; all three are pulled by one iterator, so the order is the items'.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from axonize_core.recorder import get_recorder
from axonize_hf.context import context_at, current_contexts, serve
from axonize_hf.encoder import Forward
from axonize_hf.items import Chunk, Item, batch_of, count_outputs, tokens_of, worker_rows
from axonize_hf.run import Batch, close_request, current_batch, guarded, open_request
from axonize_hf.tasks import task_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Session", "Stage"]

_END = object()


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


class Session:
    """The items of one call of a pipeline. One thread at a time, that of whoever pulls the results."""

    def __init__(self, pipe: Any, source: int, batch_size: int = 1) -> None:
        self.pipe = pipe
        self.pid = os.getpid()
        self.called_ns: int | None = get_recorder().clock()
        self._source = source
        self._batch_size = batch_size
        self._task = task_of(pipe)
        self._contexts = current_contexts()
        self._count = 0
        self._failed = False
        self._items: deque[Item] = deque()
        self._waiting: list[Chunk] = []
        self._unfinished: Item | None = None

    def __del__(self) -> None:
        # Whoever stopped pulling left computed items behind; how they would have ended is unknown.
        if getattr(self, "pid", None) == os.getpid():
            self.abandon(None)

    def preprocess(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Open the item's request and prepare its inputs, all at once or chunk by chunk."""
        item = self._open(args[0] if args else None)
        try:
            with serve(None if item is None else item.context):
                inputs = original(*args, **kwargs)
        except BaseException as error:
            self.abandon(error)
            raise
        if isinstance(inputs, Iterator):
            return self._chunks(item, inputs)
        self._add(item, inputs)
        return inputs

    def _chunks(self, item: Item | None, chunks: Iterator[Any]) -> Iterator[Any]:
        while True:
            try:
                with serve(None if item is None else item.context):
                    inputs = next(chunks, _END)
            except BaseException as error:
                self.abandon(error)
                raise
            if inputs is _END:
                return
            self._add(item, inputs)
            yield inputs

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
            if failure is not None:
                self.abandon(failure)

    def postprocess(self, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Shape the item's answer and close its request."""
        item = self._items.popleft() if self._items else None
        # Some pipelines take the generated tokens out of what they are given.
        counted = self._counted(item, args[0] if args else None)
        try:
            result = original(*args, **kwargs)
        except BaseException as error:
            self._failed = True
            self._close(item, counted, error)
            raise
        self._close(item, counted)
        return result

    def fail(self, error: BaseException) -> None:
        """End a call that raised; one that did so before we saw any of its items was a request too."""
        if not (self._items or self._failed):
            self._open(None)
        self.abandon(error)

    @guarded("hf.pipeline.abandon")
    def abandon(self, error: BaseException | None) -> None:
        """Close every request that is still open: its caller gets this error, or asks no more."""
        self._failed = self._failed or error is not None
        self._waiting.clear()
        self._unfinished = None
        while self._items:
            self._close(self._items.popleft(), error=error)

    @guarded("hf.pipeline.item")
    def _open(self, given: Any) -> Item:
        arrived_ns = self.called_ns or get_recorder().clock()
        # The class is not exported by every supported version, but has had this name in all of them.
        operation = "chat" if type(given).__name__ == "Chat" else self._task.operation
        context = context_at(self._contexts, self._count)
        self._count += 1
        item = Item(open_request(self._source, context, arrived_ns, operation, None), context)
        self._items.append(item)
        return item

    def _add(self, item: Item | None, inputs: Any) -> None:
        if item is not None:
            self._waiting.append(item.add(_tokens(inputs)))

    @guarded("hf.pipeline.batch")
    def _batch(self, inputs: Any) -> Batch | None:
        if not self._waiting:
            self._adopt(inputs)
        if not self._waiting:
            return None
        batch = batch_of(self._source, self._waiting)
        for item, _ in self._waiting:
            item.batch = batch
        self._waiting.clear()
        return batch

    def _adopt(self, inputs: Any) -> None:
        """Open the requests of items that worker processes prepared: first seen when they are run."""
        for prompt, tokens, is_last in worker_rows(inputs, batched=self._batch_size > 1):
            item = self._unfinished or self._open(prompt)
            if item is not None:
                self._waiting.append(item.add(tokens))
            self._unfinished = None if is_last else item

    @guarded("hf.pipeline.count")
    def _counted(self, item: Item | None, outputs: Any) -> tuple[int, str | None] | None:
        return count_outputs(self.pipe.model, outputs, None if item is None else item.batch)

    @guarded("hf.pipeline.close")
    def _close(
        self, item: Item | None, counted: tuple[int, str | None] | None = None, error: BaseException | None = None
    ) -> None:
        if item is not None:
            close_request(item.seq, item.input_tokens, counted or (None, None), error)


@guarded("hf.pipeline.measure")
def _tokens(inputs: Any) -> int | None:
    return tokens_of(inputs)


@guarded("hf.pipeline.forward")
def _forward(pipe: Any, batch: Batch) -> Forward:
    return Forward(pipe, batch)
