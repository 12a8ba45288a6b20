"""The class swap, on classes of our own."""

from __future__ import annotations

import copy
import pickle

import pytest

from axonize_hf.swap import is_swapped, original_class, swap, unswap


class Plain:
    """Says hello."""

    def hello(self):
        return "hello"


class Reducing:
    def __init__(self, size):
        self.size = size

    def __reduce__(self):
        return Reducing, (self.size,)


class Named:
    def __reduce__(self):
        return "THE_ONE"


THE_ONE = Named()


def overrides(original):
    return {"hello": lambda self: original.hello(self) + "!"}


def test_swap_and_back():
    """A swapped object does something else under the same name, once, and is what it was after unswap."""
    thing = Plain()
    swap(thing, overrides)
    swapped = type(thing)
    swap(thing, overrides)
    assert type(thing) is swapped
    assert (thing.hello(), swapped.__name__, swapped.__doc__, swapped.__qualname__) == (
        "hello!",
        "Plain",
        "Says hello.",
        "Plain",
    )
    assert (is_swapped(thing), original_class(thing)) == (True, Plain)
    unswap(thing)
    assert (type(thing), thing.hello(), is_swapped(thing)) == (Plain, "hello", False)


def test_one_subclass_per_class():
    """Objects of one class share their subclass, so compilers see one type."""
    one, two = Plain(), Plain()
    swap(one, overrides)
    swap(two, overrides)
    assert type(one) is type(two)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_plain_in_every_protocol(protocol):
    """Every pickle protocol, and every copy, gives an object of the original class with its state."""
    thing = Plain()
    thing.state = [1]
    swap(thing, overrides)
    for twin in (pickle.loads(pickle.dumps(thing, protocol)), copy.copy(thing), copy.deepcopy(thing)):
        assert (type(twin), twin.state, twin.hello()) == (Plain, [1], "hello")


def test_a_reduce_of_its_own_is_kept():
    """A class that says how to rebuild itself is rebuilt that way."""
    sized = Reducing(3)
    swap(sized, lambda _: {})
    assert pickle.loads(pickle.dumps(sized)).size == 3
    swap(THE_ONE, lambda _: {})
    assert copy.copy(THE_ONE) is THE_ONE
    unswap(THE_ONE)


def test_what_cannot_be_swapped_says_so():
    """An object whose layout forbids it raises TypeError and stays as it is."""
    with pytest.raises(TypeError):
        swap(7, lambda _: {})
