"""A mixed load on a tritonserver, over HTTP and gRPC, and what each of its requests is to be recorded as."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from triton_client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from triton_server import Server

__all__ = ["Expected", "Load", "run", "warm"]

THREADS = 3
"""Of each kind of client; more wait for one another in this process, not in the server."""
FRAGILE = {0: None, -1: "TritonError", -2: "ValueError", -3: "TritonModelException", -4: "TritonError", -6: None}


@dataclass
class Load:
    """How many requests of each kind."""

    plain_http: int = 0
    plain_grpc: int = 0
    together_http: int = 0
    together_grpc: int = 0
    attached_http: int = 0
    fragile_grpc: int = 0
    caller_http: int = 0
    stream: int = 0
    stream_thread: int = 0
    stream_async: int = 0
    cancelled: int = 0

    @property
    def requests(self) -> int:
        return sum(vars(self).values())


@dataclass
class Expected:
    """What must have been recorded: requests by model and id, errors and responses of some, and what went wrong."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    errors: dict[tuple[str, str], str] = field(default_factory=dict)
    responses: dict[tuple[str, str], int] = field(default_factory=dict)
    cancelled: set[tuple[str, str]] = field(default_factory=set)
    calls: dict[str, str] = field(default_factory=dict)
    """Ids of calls by those of their callers."""
    wrong: list[str] = field(default_factory=list)
    """Answers that were not what the model answers."""

    def executed(self, request_id: str, *models: str) -> None:
        for model in models:
            self.requests[model, request_id] += 1

    def hold(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            self.wrong.append(f"{what}: {found!r} instead of {expected!r}")


def warm(server: Server, expected: Expected) -> None:
    """Ask each model once and wait for its span: a process finds its agent within seconds, and these are all busy then."""
    for model in ("plain", "attached", "fragile", "caller"):
        server.infer(model, 0, f"warm-{model}")
        expected.executed(f"warm-{model}", model)
    expected.executed("of-warm-caller", "plain", "plain")
    with Client(server.grpc_address) as client, client.streaming() as stream:
        for model in ("stream", "stream_thread", "stream_async", "patient"):
            stream.ask(model, 1, f"warm-{model}")
            stream.all_of()
            expected.executed(f"warm-{model}", model)
    server.capture.named("warm-", 8, timeout_s=60.0)


def run(server: Server, load: Load, headers: Callable[[str], dict[str, str]] = lambda _: {}) -> Expected:
    """Send a load, all of its kinds at the same time, after each model was asked once.

    Args:
        server: has all models.
        load: how many of each.
        headers: gives a request's, by its id. Those of a stream are its first request's.
    """
    expected, failed = Expected(), []
    warm(server, expected)
    work: list[Callable[[Expected], None]] = []
    for kind, count in vars(load).items():
        for names in _shares(kind, count):
            work.append(lambda e, kind=kind, names=names: _KINDS[kind](server, kind, names, headers, e))

    def guarded(one: Callable[[Expected], None]) -> None:
        try:
            one(expected)
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=guarded, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return expected


def _shares(kind: str, count: int) -> Iterator[list[str]]:
    names = [f"{kind}-{at}" for at in range(count)]
    shares = 1 if kind.startswith("stream") else THREADS
    yield from filter(None, (names[start::shares] for start in range(shares)))


def _http(server, kind, names, headers, expected):
    with contextlib.closing(server.connect()) as connection:
        for name in names:
            value = _value(name)
            answer = server.infer(kind.split("_")[0], value, name, headers=headers(name), connection=connection)
            _simple(kind, name, value, answer.error or answer.values[0], expected)


def _grpc(server, kind, names, headers, expected):
    with Client(server.grpc_address) as client:
        for name in names:
            value = _value(name)
            answer = client.infer(kind.split("_")[0], value, name, headers=headers(name))
            _simple(kind, name, value, answer, expected)


def _value(name: str) -> int:
    """Return what a request asks for, by its number: of the plain ones some are to fail."""
    kind, number = name.rsplit("-", 1)
    if kind.startswith("fragile"):
        return list(FRAGILE)[int(number) % len(FRAGILE)]
    return -1 if kind.startswith("plain") and int(number) % 50 == 7 else int(number) % 1000


def _simple(kind, name, value, answer, expected):
    model = kind.split("_")[0]
    if model == "plain":
        expected.executed(name, "plain")
        expected.hold(name, answer, "asked to fail" if value == -1 else 2 * value)
        if value == -1:
            expected.errors["plain", name] = "TritonError"
    elif model == "together":
        expected.executed(name, "plain", "attached")
        expected.hold(name, answer, 2 * value + 1)
    elif model == "attached":
        expected.executed(name, "attached")
        expected.hold(name, answer, value + 1)
    elif model == "caller":
        expected.executed(name, "caller")
        expected.executed(f"of-{name}", "plain", "plain")
        expected.calls[name] = f"of-{name}"
        expected.hold(name, answer, 4 * value)
    else:
        expected.executed(name, "fragile")
        error = FRAGILE[value]
        expected.hold(name, isinstance(answer, str), error is not None)
        if error is not None:
            expected.errors["fragile", name] = error


def _stream(server, model, names, headers, expected):
    """Eight requests at a time on one stream."""
    with Client(server.grpc_address) as client:
        for chunk in _chunks(names, 8):
            with client.streaming(headers(chunk[0])) as stream:
                counts = {name: 1 + int(name.rsplit("-", 1)[1]) % 4 for name in chunk}
                for name, count in counts.items():
                    stream.ask(model, count, name)
                found = defaultdict(list)
                left = len(chunk)
                while left:
                    name, value, last = stream.take()
                    found[name] += [] if value is None else [value]
                    left -= last
            for name, count in counts.items():
                expected.executed(name, model)
                expected.responses[model, name] = count
                expected.hold(name, found[name], [float(at) for at in range(count)])


def _cancelled(server, _, names, headers, expected):
    """A stream each, which ends as soon as the first response came."""
    with Client(server.grpc_address) as client:
        for name in names:
            with client.streaming(headers(name)) as stream:
                stream.ask("patient", 20, name)
                expected.hold(name, stream.take(), (name, 0.0, False))
            expected.executed(name, "patient")
            expected.responses["patient", name] = 1
            expected.cancelled.add(("patient", name))


def _chunks(names: list[str], size: int) -> Iterable[list[str]]:
    iterator = iter(names)
    return iter(lambda: list(itertools.islice(iterator, size)), [])


_KINDS = {
    **dict.fromkeys(("plain_http", "together_http", "attached_http", "caller_http"), _http),
    **dict.fromkeys(("plain_grpc", "together_grpc", "fragile_grpc"), _grpc),
    **dict.fromkeys(("stream", "stream_thread", "stream_async"), _stream),
    "cancelled": _cancelled,
}
