"""Which errors a model made: a response is asked whether it holds one only while there is one that it could hold.

Asking each response costs more than all else that is recorded of it.
"""

from __future__ import annotations

import weakref
from typing import Any

from axonize_core.recorder import get_recorder

__all__ = ["Made", "note", "settle"]


class Made:
    """A TritonError that was made; ``seen`` once a response was found to hold one.

    The response keeps the error without the Python object that was given to it: that one may be gone before.
    """

    __slots__ = ("error", "seen")

    def __init__(self, error: Any) -> None:
        self.error = weakref.ref(error)
        self.seen = False


def note(errors: list[Made], error: Any) -> None:
    """Take an error that a model made, or took from the answer of another model. Never raises; any thread."""
    try:
        errors.append(Made(error))
    except Exception:  # noqa: BLE001 - nothing of ours may reach the model
        get_recorder().count_error("triton.error")


def settle(errors: list[Made], seen: int) -> None:
    """Let go of so many errors that were seen in responses, but for those that a model keeps to use again."""
    unseen = [made for made in list(errors) if not made.seen]
    for made in sorted(unseen, key=lambda made: made.error() is not None)[:seen]:
        made.seen = True
    for made in [made for made in list(errors) if made.seen and made.error() is None]:
        errors.remove(made)
