"""Halving: whatever is bad is found, what is left is taken together, and the attempts are bounded."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from axonize_server.poison import UNDECIDED, Budget, poisonous


class Things:
    """So many things, some of them bad, of which at most `room` are taken at once."""

    def __init__(self, count, bad, room=None):
        self.count, self.bad, self.room = count, set(bad), room or count
        self.tried = []

    def refusal(self, indices):
        self.tried.append(list(indices))
        if found := self.bad & set(indices):
            return f"{min(found)} is bad"
        return "too many" if len(indices) > self.room else None

    def sort_out(self, attempts=10_000, *, together=False):
        return poisonous(self.count, self.refusal, Budget(attempts, 60), together=together)


@given(st.integers(0, 200), st.booleans(), st.data())
def test_exactly_the_bad_are_found(count, together, data):
    """However many and wherever they are, with the reason each gives."""
    bad = data.draw(st.sets(st.integers(0, count - 1))) if count else set()
    things = Things(count, bad)
    assert things.sort_out(together=together) == {index: f"{index} is bad" for index in sorted(bad)}


@given(st.integers(1, 5000), st.data())
def test_one_bad_thing_takes_a_logarithm_of_attempts(count, data):
    """Twice the depth of the halving, and one; in sum the work of trying all three times."""
    things = Things(count, {data.draw(st.integers(0, count - 1))})
    things.sort_out()
    assert len(things.tried) <= 2 * math.ceil(math.log2(count)) + 1
    assert sum(map(len, things.tried)) <= 3 * count + 2 * math.ceil(math.log2(count))


@given(st.integers(1, 100), st.integers(1, 100), st.sets(st.integers(0, 99)))
def test_what_is_left_was_taken_together(count, room, bad):
    """Also when things are refused only beside others, the rest is one that was tried and taken."""
    things = Things(count, {index for index in bad if index < count}, room)
    found = things.sort_out(together=True)
    rest = [index for index in range(count) if index not in found]
    assert not rest or (rest in things.tried and things.refusal(rest) is None)
    assert len(rest) == min(room, count - len(things.bad))


@given(st.integers(1, 300), st.sets(st.integers(0, 299)), st.integers(0, 40))
def test_attempts_are_bounded_and_nothing_undecided_is_called_good(count, bad, attempts):
    """What the attempts did not suffice for is in the answer, marked."""
    things = Things(count, {index for index in bad if index < count})
    found = things.sort_out(attempts)
    assert len(things.tried) <= attempts
    assert things.bad <= set(found)
    assert all(reason == UNDECIDED for index, reason in found.items() if index not in things.bad)


def test_seconds_are_bounded_too():
    """A slow store ends the search."""
    ticks = iter(range(1000))
    things = Things(64, {5})
    found = poisonous(64, things.refusal, Budget(1000, 4, clock=lambda: float(next(ticks))))
    assert len(things.tried) == 3
    assert UNDECIDED in found.values()
