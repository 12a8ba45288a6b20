from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axonize_core.frames import (
    MAX_FRAME_BYTES,
    Bye,
    FrameDecoder,
    FrameError,
    Hello,
    Kind,
    Record,
    Records,
    Status,
    StatusRequest,
    Welcome,
    count_events,
    encode_frame,
)

FRAMES = [
    Hello(1, "0.1", 7, "id", {"service.name": "s"}, "abc"),
    Records(
        3,
        10,
        20,
        1,
        [Record(2, 1, (1, None, "x", ("a", 2.5)), 99), Record(4, 5, (1, 2, -3), 9)],
        [(1, ("e",))],
        {"hf": 1},
    ),
    Bye("exit"),
    StatusRequest(),
    Welcome(True, "", "0.1"),
    Status({"pid": 1}),
]


def plain(value):
    if isinstance(value, Record):
        value = (value.kind, value.handle, value.payload, value.t_ns)
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("frame", FRAMES, ids=lambda f: type(f).__name__)
def test_a_frame_comes_back_equal(frame):
    """Every kind of frame survives the wire; tuples inside payloads come back as lists."""
    (back,) = FrameDecoder().feed(encode_frame(frame))
    assert type(back) is type(frame)
    assert plain([getattr(back, f) for f in frame.__struct_fields__]) == plain(
        [getattr(frame, f) for f in frame.__struct_fields__]
    )


@given(st.lists(st.integers(1, 50), max_size=60))
def test_frames_survive_any_cut_of_the_stream(cuts):
    """However the stream is cut, the same frames come out in the same order."""
    stream = b"".join(encode_frame(f) for f in FRAMES)
    decoder, out, position = FrameDecoder(), [], 0
    for size in [*cuts, len(stream)]:
        out += decoder.feed(stream[position : position + size])
        position += size
    assert [type(f) for f in out] == [type(f) for f in FRAMES]


def test_a_length_above_the_limit_is_refused():
    """A peer cannot make us hold more than the limit."""
    with pytest.raises(FrameError, match="above the limit"):
        list(FrameDecoder().feed(struct.pack("<I", MAX_FRAME_BYTES + 1)))


@given(st.binary(min_size=1, max_size=64))
def test_bytes_that_are_no_frame_are_refused_or_decoded(body):
    """Garbage raises FrameError and nothing else."""
    with contextlib.suppress(FrameError):
        list(FrameDecoder().feed(struct.pack("<I", len(body)) + body))


def test_garbage_is_refused():
    """msgpack of the wrong shape is no frame."""
    with pytest.raises(FrameError, match="not a frame"):
        list(FrameDecoder().feed(struct.pack("<I", 1) + b"\x00"))


def test_kind_numbers_are_wire_format():
    """The numbers of kinds never change."""
    assert {k.name: k.value for k in Kind} == {
        "SOURCE": 1,
        "REQUEST": 2,
        "RUN": 3,
        "RUN_TIMES": 4,
        "RUN_END": 5,
        "REQUEST_END": 6,
        "MANY": 7,
        "STEP": 8,
        "ANSWER": 9,
        "STEP_DEVICE": 10,
        "STEP_COUNTS": 11,
        "EXECUTE": 12,
        "EXECUTE_END": 13,
        "RESPONSE": 14,
        "REQUEST_FACT": 15,
    }


def test_a_record_of_many_counts_as_its_events():
    """What is counted is events, not records."""
    many = Record(Kind.MANY, 3, (6, [1, 2, 3], None), 5)
    assert count_events([]) == 0
    assert count_events([Record(Kind.RUN, 99, None, 4), many]) == 4
