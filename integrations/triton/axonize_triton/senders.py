"""Responses that are sent: the senders that a model asks its requests for, and what it learns from them.

``pb_utils`` has no hook, but the methods of its classes can be replaced. That is done once in a process, in
``initialize``: before, they are not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from axonize_core.executions import FINAL, RESPONSE
from axonize_core.frames import Kind, Record
from axonize_triton.failures import Made, note, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from axonize_core.recorder import Recorder

__all__ = ["OpenRequests", "Sender", "senders"]

_RESPONSE, _FACT = int(Kind.RESPONSE), int(Kind.REQUEST_FACT)
_MARK = "_axonize_senders"
_RESCHEDULE = 2
"""TRITONSERVER_REQUEST_RELEASE_RESCHEDULE: the same request will be executed again."""


class OpenRequests:
    """Which of our numbers the live requests of this process have, and what is to be known of them later.

    Requests take no attributes, so they are known by their ``id()`` while they live: from ``execute`` to the last
    response in decoupled models, and during ``execute`` in others.
    """

    def __init__(self) -> None:
        self._seqs: dict[int, int] = {}
        self.running: tuple[Sequence[Any], Sequence[int]] | None = None
        self.rescheduled: dict[Any, int] = {}
        self.errors: list[Made] = []
        """Those that a response could hold: only then is one asked for its error."""

    def remember(self, requests: Sequence[Any], seqs: Sequence[int]) -> Sequence[int]:
        """Know these requests until their last response; return their numbers, the old ones of rescheduled ones."""
        if self.rescheduled:
            seqs = self._known(requests, seqs)
        if len(seqs) == 1:  # a quarter of the time
            self._seqs[id(requests[0])] = seqs[0]
        else:
            self._seqs.update(zip(map(id, requests), seqs, strict=True))
        return seqs

    def run(self, requests: Sequence[Any], seqs: Sequence[int]) -> Sequence[int]:
        """Know these requests until their execution is over; the rest as ``remember``."""
        if self.rescheduled:
            seqs = self._known(requests, seqs)
        self.running = (requests, seqs)
        return seqs

    def forget(self, request_key: int, seq: int) -> None:
        """Let go of a request that had its last response; a later one may already be where it was in memory."""
        if self._seqs.get(request_key) == seq:
            self._seqs.pop(request_key, None)

    def find(self, request: Any) -> int | None:
        """Return a request's number."""
        if (seq := self._seqs.get(id(request))) is not None:
            return seq
        running = self.running
        for other, seq in zip(*running, strict=True) if running else ():
            if other is request:
                return seq
        return None

    def _known(self, requests: Sequence[Any], seqs: Sequence[int]) -> list[int]:
        return [self.rescheduled.pop(_key(r), seq) for r, seq in zip(requests, seqs, strict=True)]


class Sender:
    """Stands for a response sender; ``send`` records that a response was there when it was handed over."""

    __slots__ = ("_sender", "is_cancelled", "send")

    def __init__(self, sender: Any, send: Callable[..., Any], is_cancelled: Callable[[], bool]) -> None:
        self._sender = sender
        self.send = send
        self.is_cancelled = is_cancelled

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sender, name)


def senders(pb_utils: Any, recorder: Recorder) -> OpenRequests:
    """Record what requests and their senders are used for from now on; once in a process."""
    known: OpenRequests | None = getattr(pb_utils.InferenceRequest, _MARK, None)
    if known is not None:
        return known
    open_requests = OpenRequests()
    request_class = pb_utils.InferenceRequest
    request_class.get_response_sender = _get_response_sender(request_class.get_response_sender, open_requests, recorder)
    request_class.is_cancelled = _is_cancelled(request_class.is_cancelled, open_requests, recorder)
    if hasattr(request_class, "set_release_flags"):
        request_class.set_release_flags = _set_release_flags(request_class.set_release_flags, open_requests, recorder)
    pb_utils.TritonError.__init__ = _noting_init(pb_utils.TritonError.__init__, open_requests.errors)
    pb_utils.InferenceResponse.error = _noting_error(pb_utils.InferenceResponse.error, open_requests.errors)
    setattr(request_class, _MARK, open_requests)
    return open_requests


def _get_response_sender(original: Any, open_requests: OpenRequests, recorder: Recorder) -> Any:
    def get_response_sender(request: Any) -> Any:
        sender = original(request)
        try:
            seq = open_requests.find(request)
            return sender if seq is None else _sender(sender, seq, id(request), open_requests, recorder)
        except Exception:  # noqa: BLE001 - nothing of ours may reach the model
            recorder.count_error("triton.get_response_sender")
            return sender

    return get_response_sender


def _sender(sender: Any, seq: int, request_key: int, open_requests: OpenRequests, recorder: Recorder) -> Sender:
    emit, original, errors, forget = recorder.emit, sender.send, open_requests.errors, open_requests.forget
    queue, append, clock, record = recorder.queue, recorder.append, recorder.clock, Record

    def send(response: Any = None, flags: int = 0) -> Any:
        try:
            if flags or errors or response is None:
                told(response, flags)
            elif len(queue) < recorder.limit:  # one of many: as emit, without its call, which is an eighth of the time
                append(record(_RESPONSE, seq, RESPONSE, clock()))
            else:
                emit(_RESPONSE, seq, RESPONSE)
        except Exception:  # noqa: BLE001 - nothing of ours may reach the model
            recorder.count_error("triton.send")
        return original(response, flags)

    def told(response: Any, flags: int) -> None:
        if errors and response is not None and _failed(response, errors):
            emit(_RESPONSE, seq, (flags & FINAL | RESPONSE, "TritonError"))
        else:
            emit(_RESPONSE, seq, flags if response is None else flags | RESPONSE)
        if flags & FINAL:
            forget(request_key, seq)

    def is_cancelled() -> bool:
        cancelled: bool = sender.is_cancelled()
        if cancelled:
            emit(_FACT, seq, ("cancelled", None))
        return cancelled

    return Sender(sender, send, is_cancelled)


def _failed(response: Any, errors: list[Made]) -> bool:
    failed = bool(response.has_error())
    settle(errors, int(failed))
    return failed


def _is_cancelled(original: Any, open_requests: OpenRequests, recorder: Recorder) -> Any:
    def is_cancelled(request: Any) -> bool:
        cancelled: bool = original(request)
        try:
            if cancelled and (seq := open_requests.find(request)) is not None:
                recorder.emit(_FACT, seq, ("cancelled", None))
        except Exception:  # noqa: BLE001 - same
            recorder.count_error("triton.is_cancelled")
        return cancelled

    return is_cancelled


def _set_release_flags(original: Any, open_requests: OpenRequests, recorder: Recorder) -> Any:
    def set_release_flags(request: Any, flags: int) -> Any:
        try:
            if flags & _RESCHEDULE and (key := _key(request)) and (seq := open_requests.find(request)) is not None:
                open_requests.rescheduled[key] = seq
        except Exception:  # noqa: BLE001 - same
            recorder.count_error("triton.set_release_flags")
        return original(request, flags)

    return set_release_flags


def _noting_init(original: Any, errors: list[Made]) -> Any:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        note(errors, self)

    return init


def _noting_error(original: Any, errors: list[Made]) -> Any:
    """An error of another model's answer, which may go into this one's: it is made without ``__init__``."""

    def error(response: Any) -> Any:
        found = original(response)
        if found is not None:
            note(errors, found)
        return found

    return error


def _key(request: Any) -> Any:
    """Return what a request is known by when it comes back: its sequence, else its id; nothing where it has neither."""
    return request.correlation_id() or request.request_id()
