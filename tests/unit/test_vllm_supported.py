"""Which versions of vLLM are taken, and the self-test that says what one of them lacks."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from types import ModuleType

import msgspec
import pytest

from axonize_vllm import _supported
from axonize_vllm._supported import CAPABILITIES, SUPPORTED, TESTED, Capability, Point, added_later, has, is_supported


class Base:
    def __init__(self):
        self.rank: int = 0
        self.peer.seen = self.never_assigned


class Queue(Base):
    limit = 8

    def __init__(self):
        super().__init__()
        self.requests = {}

    @property
    def usage(self):
        return 0.0

    def schedule(self, throttle=False):
        return self.requests

    def update(self, output, results, *more, wait=True):
        return output

    @staticmethod
    def add_arguments(parser):
        return parser

    @classmethod
    def of(cls, settings):
        return cls()


@dataclass
class Output:
    members: dict
    note: str = ""


class Answer(msgspec.Struct):
    request_id: str
    reason: str | None = None


@pytest.fixture
def vllm(monkeypatch):
    """A module tree with the classes above, called vLLM 0.32.0."""
    package, module = ModuleType("vllm"), ModuleType("vllm.core")
    package.__path__, package.__version__ = [], "0.32.0+cpu"
    module.Queue, module.Output, module.Answer = Queue, Output, Answer
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.core", module)
    return package


@pytest.fixture
def missing(vllm, monkeypatch):
    """The self-test of a capability made of the points given."""

    def ask(*points, **bounds):
        capability = Capability("tried", "what is tried", points, **bounds)
        monkeypatch.setitem(_supported._NAMED, "tried", capability)
        return _supported.missing("tried")

    return ask


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.17.1", False),
        ("0.18.0", True),
        ("0.32.0+cpu", True),
        ("0.33.1rc1", True),
        ("0.34.0", False),
        ("main", False),
    ],
)
def test_the_supported_range(version, expected):
    """From 0.18 up to but without 0.34, local versions and release candidates included."""
    assert is_supported(version) is expected


def test_what_is_tested_is_supported():
    """The tested versions begin with the range and end with it."""
    assert all(map(is_supported, TESTED))
    assert TESTED[0].startswith("0.18.")
    assert TESTED[-1].startswith(f"0.{SUPPORTED[1][1] - 1}.")


def test_what_a_version_can_do():
    """A capability begins with a version; an unreadable version can do nothing."""
    assert has("scheduler", "0.18.1")
    assert not has("iteration_details", "0.25.1")
    assert has("iteration_details", "0.32.0+cpu")
    assert not has("scheduler", "main")


def test_what_came_later():
    """What a version cannot do yet is named with the version that can."""
    assert added_later("0.18.1") == [
        "ids of finished requests in vLLM's own statistics (0.25)",
        "counts of each step in vLLM's own statistics (0.32)",
    ]
    assert added_later("0.33.0") == []


def test_names_and_points_are_whole():
    """No two capabilities of one name, and none without points, each a class and its member."""
    assert len({c.name for c in CAPABILITIES}) == len(CAPABILITIES)
    for capability in CAPABILITIES:
        assert capability.points
        for point in capability.points:
            assert point.module.startswith("vllm.")
            assert len(point.path.split(".")) == 2


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("Queue.requests", None),  # __init__ assigns it
        ("Queue.rank", None),  # that of a base class does
        ("Queue.limit", None),
        ("Queue.usage", None),
        ("Output.members", None),  # a field of a dataclass without a default
        ("Output.note", None),
        ("Answer.request_id", None),
        ("Answer.reason", None),
        ("Queue.schedule", ()),
        ("Queue.schedule", ("throttle",)),
        ("Queue.update", ("output",)),
        ("Queue.update", ("output", "results")),
        ("Queue.add_arguments", ("parser",)),
        ("Queue.of", ("settings",)),
    ],
)
def test_what_is_there_is_not_missing(missing, path, parameters):
    """Attributes of every kind are found, and methods by their leading parameters."""
    assert missing(Point("vllm.core", path, parameters)) is None


@pytest.mark.parametrize(
    ("path", "parameters", "expected"),
    [
        ("Stack.requests", None, "vllm.core: no Stack"),
        ("Queue.waiting", None, "vllm.core: no Queue.waiting"),
        ("Queue.never_assigned", None, "vllm.core: no Queue.never_assigned"),
        ("Output.id", None, "vllm.core: no Output.id"),
        ("Answer.finish_reason", None, "vllm.core: no Answer.finish_reason"),
        ("Queue.finish", (), "vllm.core: no Queue.finish()"),
        ("Queue.limit", (), "vllm.core: no Queue.limit()"),
        ("Queue.schedule", ("throttle", "more"), "vllm.core: Queue.schedule(throttle) instead of (throttle, more)"),
        ("Queue.update", ("results",), "vllm.core: Queue.update(output, results) instead of (results)"),
        (
            "Queue.update",
            ("results", "output"),
            "vllm.core: Queue.update(output, results) instead of (results, output)",
        ),
        ("Queue.add_arguments", ("args",), "vllm.core: Queue.add_arguments(parser) instead of (args)"),
    ],
)
def test_what_is_not_there_is_named(missing, path, parameters, expected):
    """A class, attribute, method or parameter that is gone or renamed is said with its module."""
    assert missing(Point("vllm.core", path, parameters)) == expected


def test_a_module_that_moved_is_named(missing):
    """A module that cannot be imported is an answer like any other."""
    assert missing(Point("vllm.gone", "Queue.requests")) == (
        "vllm.gone: cannot be imported (No module named 'vllm.gone')"
    )


def test_the_first_fault_is_told(missing):
    """One line: that of the first point at fault, in the order of the table."""
    points = [Point("vllm.core", f"Queue.{name}") for name in ("requests", "waiting", "running")]
    assert missing(*points) == "vllm.core: no Queue.waiting"


def test_a_wrapped_method_is_seen_through(missing, monkeypatch):
    """What was instrumented already still shows the parameters of the original."""
    original = Queue.update

    @functools.wraps(original)
    def wrapper(*args, **kwargs):
        return original(*args, **kwargs)

    monkeypatch.setattr(Queue, "update", wrapper)
    assert missing(Point("vllm.core", "Queue.update", ("output", "results"))) is None
    del wrapper.__wrapped__
    assert missing(Point("vllm.core", "Queue.update", ("output", "results"))) is not None


@pytest.mark.parametrize(
    ("version", "lacks_old", "lacks_new"),
    [("0.18.1", True, False), ("0.32.0", False, True), ("0.1.dev9+g1a2b3c", False, True), ("main", False, True)],
)
def test_points_count_in_their_versions(missing, vllm, version, lacks_old, lacks_new):
    """A point is looked for where the table says it is; a version that says nothing is taken for the newest."""
    vllm.__version__ = version
    old, new = Point("vllm.core", "Queue.old", before=(0, 25)), Point("vllm.core", "Queue.new", since=(0, 25))
    assert (missing(old) is not None) is lacks_old
    assert (missing(new) is not None) is lacks_new


def test_a_capability_of_later_versions_is_missing(missing, vllm):
    """What the table gives to later versions only is missing before, whatever is there."""
    vllm.__version__ = "0.25.1"
    assert missing(Point("vllm.core", "Queue.requests"), since=(0, 32)) == "what is tried: not in vLLM 0.25.1"


def test_the_self_test_never_raises(missing, vllm, monkeypatch):
    """No vLLM, no such capability, or a module that breaks: told, not raised."""
    assert _supported.missing("telepathy") == "telepathy: KeyError: 'telepathy'"
    monkeypatch.setattr(_supported, "_fault", lambda point: 1 / 0)
    assert missing(Point("vllm.core", "Queue.requests")) == "tried: ZeroDivisionError: division by zero"
    monkeypatch.setitem(sys.modules, "vllm", None)
    assert "ModuleNotFoundError" in _supported.missing("scheduler")
