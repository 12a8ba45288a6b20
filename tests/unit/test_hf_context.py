"""What a server says about its requests, as a record can carry it."""

from __future__ import annotations

from fractions import Fraction

import pytest

import axonize_hf
from axonize_core.frames import Records, encode_frame
from axonize_hf.context import context_at, current_contexts


def test_contexts_nest_and_end():
    """The innermost context counts, and the outer one comes back, also after an error."""
    with axonize_hf.request(request_id="outer") as outer:
        with pytest.raises(KeyError), axonize_hf.requests([axonize_hf.RequestContext("inner")]):
            assert context_at(current_contexts(), 0).request_id == "inner"
            raise KeyError
        assert current_contexts() is outer
    assert context_at(current_contexts(), 0) == axonize_hf.RequestContext()


def test_one_for_all_or_one_each():
    """A single context counts for every item; a list gives each item its own and the rest none."""
    one, two = axonize_hf.RequestContext("one"), axonize_hf.RequestContext("two")
    assert context_at(one, 5) is one
    assert [context_at((one, two), n).request_id for n in range(3)] == ["one", "two", None]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (0, 0),
        (2.5, 2.5),
        (None, None),
        ("é", "é"),
        ("\udce9", "?"),
        (2**64, str(2**64)),
        ([1, ["a", 2**64]], (1, ("a", str(2**64)))),
        ({"a": 1}, "{'a': 1}"),
        (Fraction(1, 2), 0.5),
    ],
)
def test_any_attribute_can_be_sent(value, expected):
    """Whatever a server passes becomes a value that a frame can carry; scalars keep their types."""
    ((key, found),) = axonize_hf.RequestContext(attributes={"k": value}).pairs()
    assert (key, found, type(found)) == ("k", expected, type(expected))
    assert encode_frame(Records(0, 0, 0, 0, [(2, 1, ((key, found),), 0)]))


def test_ids_become_text():
    """Ids of any type become text that can be encoded; unknown stays unknown."""
    context = axonize_hf.RequestContext(request_id=17, traceparent="00-\udc80")
    assert (context.request_id, context.traceparent) == ("17", "00-?")
    assert axonize_hf.RequestContext().pairs() is None
