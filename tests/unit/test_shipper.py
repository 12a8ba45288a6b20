from __future__ import annotations

import threading
import time

import pytest

from axonize_core import shipper
from axonize_core.frames import Bye, FrameDecoder, Kind, Record, Records
from axonize_core.recorder import Recorder
from axonize_core.shipper import CHUNK, Shipper


class MemoryTransport:
    """Keeps what it is given; can be away, and can fail."""

    def __init__(self):
        self.generation = 1
        self.open = True
        self.fail = False
        self.frames = []
        self.closed = False
        self._decoder = FrameDecoder()

    def ready(self):
        return self.open

    def takes_now(self):
        return self.open

    def write(self, frame, records):
        if self.fail:
            raise RuntimeError("boom")
        self.frames += self._decoder.feed(frame)

    def drained(self, timeout_s):
        return True

    def close(self):
        self.closed = True

    @property
    def records(self):
        return [r for f in self.frames if isinstance(f, Records) for r in f.records]


@pytest.fixture
def setup():
    transport = MemoryTransport()
    recorder = Recorder(10_000, lambda r: Shipper(r, transport))
    yield recorder, transport
    recorder.close(2)


def test_records_arrive_in_order_and_are_numbered(setup):
    """Frames carry the records in order, are numbered from 0, and carry both clocks."""
    recorder, transport = setup
    for handle in range(CHUNK * 3 + 5):
        recorder.emit(Kind.REQUEST_END, handle, None)
    assert recorder.flush(5)
    assert [r.handle for r in transport.records] == list(range(CHUNK * 3 + 5))
    frames = [f for f in transport.frames if isinstance(f, Records)]
    assert [f.seq for f in frames] == list(range(len(frames)))
    assert abs(frames[0].wall_ns - time.time_ns()) < 60e9


def test_what_comes_while_a_frame_is_sent_waits_for_the_next(setup, monkeypatch):
    """An engine that goes on does not keep the shipper awake, frame for frame."""
    recorder, transport = setup
    monkeypatch.setattr(shipper, "PERIOD_S", 60.0)
    more, write = [100, 101, 102], transport.write

    def write_meanwhile(frame, records):
        write(frame, records)
        if more:
            recorder.emit(Kind.REQUEST_END, more.pop(0), None)

    transport.write = write_meanwhile
    recorder.emit(Kind.REQUEST_END, 1, None)
    for frames, queued in ((1, 1), (2, 1), (3, 1), (4, 0)):
        recorder._drainer.wake()
        deadline = time.monotonic() + 5
        while len(transport.frames) < frames and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.02)
        assert (len(transport.frames), recorder.queued()) == (frames, queued)
    assert [r.handle for r in transport.records] == [1, 100, 101, 102]


def test_a_flush_waits_for_what_came_while_a_frame_was_sent(setup, monkeypatch):
    """A drain that began before says nothing of a record that came meanwhile, which the next one is still sending."""
    recorder, transport = setup
    monkeypatch.setattr(shipper, "PERIOD_S", 60.0)
    first, go_on, write = threading.Event(), threading.Event(), transport.write

    def slow_write(frame, records):
        if first.is_set():
            time.sleep(0.3)
        first.set()
        assert go_on.wait(5)
        write(frame, records)

    recorder.start()
    transport.write = slow_write
    recorder.emit(Kind.REQUEST_END, 1, None)
    recorder._drainer.wake()
    assert first.wait(5)
    recorder.emit(Kind.REQUEST_END, 2, None)
    threading.Timer(0.01, go_on.set).start()
    assert recorder.flush(5)
    assert [r.handle for r in transport.records] == [1, 2]


def test_a_frame_carries_about_a_chunk_of_events_and_says_how_many(setup):
    """Records of many do not make a slice longer, and a transport that loses a frame counts its events."""
    recorder, transport = setup
    told = []
    transport.write, write = lambda frame, records: (told.append(records), write(frame, records)), transport.write
    recorder.emit(Kind.REQUEST_END, 1, None)
    for _ in range(8):
        recorder.emit_many(Kind.REQUEST_END, range(200))
    assert recorder.flush(5)
    assert sum(told) == 1601
    assert max(told) <= 2 * CHUNK
    assert sum(r.handle for r in transport.records if r.kind == Kind.MANY) == 1600


def test_a_record_that_no_frame_can_carry_costs_itself_only(setup):
    """What cannot be encoded is dropped and counted; its neighbours arrive."""
    recorder, transport = setup
    recorder.emit(Kind.REQUEST_END, 1, None)
    recorder.emit(Kind.REQUEST_END, 2, object())
    recorder.emit_many(Kind.REQUEST_END, [3, 4], [None, object()])
    recorder.emit(Kind.REQUEST_END, 5, None)
    assert recorder.flush(5)
    assert [r.handle for r in transport.records] == [1, 5]
    assert [f.dropped_total for f in transport.frames] == [3]
    assert recorder.errors == {"shipper.encode": 2}


def test_live_lists_are_shipped_while_they_grow_and_end_with_the_sentinel(setup):
    """Steps of a run that lives are visible before it ends, each exactly once, and in order before RUN_END."""
    recorder, transport = setup
    times = [10, 20]
    recorder.emit(Kind.RUN, 5, (1, (2,), (4,), "generate", times))
    assert recorder.flush(5)
    times.append(30)
    assert recorder.flush(5)
    times += [40, -50]
    recorder.emit(Kind.RUN_END, 5, (4, None))
    assert recorder.flush(5)
    kinds = [r.kind for r in transport.records]
    assert kinds[0] == Kind.RUN
    assert kinds[-1] == Kind.RUN_END
    shipped = [t for r in transport.records if r.kind == Kind.RUN_TIMES for t in r.payload]
    assert shipped == [10, 20, 30, 40, -50]
    assert transport.records[0].payload == [1, [2], [4], "generate"], "the list itself stays here"


def test_a_run_whose_end_was_dropped_is_let_go(setup):
    """The sentinel closes a live list even when RUN_END was lost."""
    recorder, _transport = setup
    times = [10, -20]
    recorder.emit(Kind.RUN, 5, (1, (2,), (4,), "generate", times))
    assert recorder.flush(5)
    assert recorder._drainer._live == {}


def test_while_the_agent_is_away_records_wait_and_then_go(setup):
    """Nothing is taken from the queue that cannot be handed over."""
    recorder, transport = setup
    transport.open = False
    recorder.emit(Kind.REQUEST_END, 1, None)
    assert recorder.flush(0.3) is False
    assert recorder.queued() == 1
    transport.open = True
    assert recorder.flush(5)
    assert len(transport.records) == 1


def test_a_transport_that_fills_up_stops_the_drain():
    """When the transport takes no more in the middle of a slice, the rest stays queued."""

    class OneFrame(MemoryTransport):
        def ready(self):
            return len(self.frames) < 1

    transport = OneFrame()
    recorder = Recorder(10_000, lambda r: Shipper(r, transport))
    recorder.emit(Kind.REQUEST_END, 0, None)
    shipper = recorder._drainer
    for handle in range(1, CHUNK * 4):
        recorder.emit(Kind.REQUEST_END, handle, None)
    recorder.flush(0.3)
    assert len(transport.records) <= CHUNK
    assert recorder.queued() + len(transport.records) == CHUNK * 4
    assert shipper._thread.is_alive()
    recorder.close(0.2)


def test_sources_and_numbers_begin_anew_with_a_new_agent(setup):
    """A restarted agent is told every source again."""
    recorder, transport = setup
    recorder.source("transformers", "s", "m", "p", ("cpu", 0, None))
    recorder.emit(Kind.REQUEST_END, 1, None)
    assert recorder.flush(5)
    transport.generation = 2
    recorder.emit(Kind.REQUEST_END, 2, None)
    assert recorder.flush(5)
    first, last = transport.frames[0], transport.frames[-1]
    assert len(first.sources) == 1 == len(last.sources)
    assert last.seq == 0


def test_drops_are_told_even_without_records(setup):
    """The count of drops travels on its own when nothing else does."""
    recorder, transport = setup
    recorder.emit(Kind.REQUEST_END, 1, None)
    assert recorder.flush(5)
    recorder.count_dropped(4)
    assert recorder.flush(5)
    assert transport.frames[-1].dropped_total == 4
    assert transport.frames[-1].records == []


def test_a_failing_transport_is_counted_and_the_thread_lives_on(setup):
    """An error of ours ends neither the thread nor anything of the engine's."""
    recorder, transport = setup
    transport.fail = True
    recorder.emit(Kind.REQUEST_END, 1, None)
    recorder.flush(0.3)
    assert recorder.errors["shipper.drain"] >= 1
    assert recorder.dropped_total() == 1
    transport.fail = False
    recorder.emit(Kind.REQUEST_END, 2, None)
    assert recorder.flush(5)


def test_close_says_goodbye():
    """A process that ends on purpose says so, after its last record."""
    transport = MemoryTransport()
    recorder = Recorder(100, lambda r: Shipper(r, transport))
    recorder.emit(Kind.REQUEST_END, 1, None)
    assert recorder.close(5)
    assert isinstance(transport.frames[-1], Bye)
    assert transport.closed


def test_long_backlogs_are_drained_in_slices(setup):
    """A backlog leaves in slices with pauses; none of it is lost."""
    recorder, transport = setup
    for handle in range(9000):
        recorder.emit(Kind.REQUEST_END, handle, ("length", 4, 5, None, None))
    assert recorder.flush(10)
    assert len(transport.records) == 9000


@pytest.mark.parametrize("payload", [None, object()])
def test_a_slice_ends_by_the_clock(payload):
    """However many wait, and where none of them can be encoded too."""
    recorder = Recorder(1000, lambda r: Shipper(r, MemoryTransport()))
    recorder.queue.extend(Record(Kind.REQUEST_END, handle, payload, 0) for handle in range(100))
    assert Shipper(recorder, MemoryTransport())._slice(100, 0) == shipper._LOOK_RECORDS
    assert recorder.dropped_total() == (0 if payload is None else shipper._LOOK_RECORDS)


def test_a_large_step_does_not_make_a_frame_too_large(setup):
    """Members have bytes, so that a frame of many such steps stays small."""
    recorder, transport = setup
    members = {f"chatcmpl-{n:032}": 1 for n in range(1000)}
    payload = (1, 0, 0, 0, (members, list(members), list(members.values())), None, None, None, 1, 0, None)
    for step in range(40):
        recorder.emit(Kind.STEP, step, payload)
        recorder.emit(Kind.STEP, step, (*payload[:4], None, *payload[5:]))
    assert recorder.flush(10)
    assert [record.handle for record in transport.records if record.payload[4]] == list(range(40))
    assert len(transport.frames) >= 20


def test_long_parameters_of_many_executions_do_not_make_a_frame_too_large(setup):
    """What requests say of themselves has bytes, however few batches they are in."""
    recorder, transport = setup
    text = "x" * 40_000
    for handle in range(200):
        recorder.emit(Kind.EXECUTE, handle, (1, [1, 2], ["a", "b"], [None, text], [text, "{}"], None))
        recorder.emit(Kind.EXECUTE, handle, (1, [1], ["a"], None, None, None))
    assert recorder.flush(10)
    assert len(transport.records) == 400
    assert len(transport.frames) >= 10


@pytest.fixture
def resting(monkeypatch):
    """A recorder whose thread of ours has greeted the agent and sleeps on for as long as it may."""
    monkeypatch.setattr(shipper, "PERIOD_S", 60.0)
    transport = MemoryTransport()
    recorder = Recorder(10_000, lambda r: Shipper(r, transport))
    recorder.start()
    assert recorder.flush(5)
    yield recorder, transport
    recorder.close(2)


def test_an_engine_that_is_busy_hands_over_on_its_own_thread(resting):
    """What waits and what runs told leaves on the thread that asks, which need not ask again for a while."""
    recorder, transport = resting
    times = [10, 20]
    recorder.emit(Kind.RUN, 5, (1, (2,), (4,), "generate", times))
    recorder.emit(Kind.REQUEST_END, 1, None)
    assert recorder.ship_here() > recorder.clock() + shipper.HERE_NS // 2
    assert [r.kind for r in transport.records] == [Kind.RUN, Kind.REQUEST_END, Kind.RUN_TIMES]
    assert recorder.queued() == 0


def test_an_engine_that_hands_over_puts_off_our_thread(setup, monkeypatch):
    """It never wakes while the engine goes on, and ships what is left soon after the engine stopped."""
    monkeypatch.setattr(shipper, "PERIOD_S", 1.5)
    recorder, transport = setup
    recorder.start()
    assert recorder.flush(5)
    looked = []
    transport.ready, ready = lambda: (looked.append(1), ready())[1], transport.ready
    recorder.ship_here()
    looked.clear()
    for _ in range(20):
        time.sleep(0.1)
        recorder.ship_here()
    assert looked == []
    recorder.emit(Kind.REQUEST_END, 1, None)
    deadline = time.monotonic() + 5
    while not transport.records and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(transport.records) == 1


def test_an_engine_hands_over_a_slice_at_a_time(resting, monkeypatch):
    """What is more goes after its next step."""
    recorder, transport = resting
    monkeypatch.setattr(shipper, "HERE_SLICE_NS", 0)
    for handle in range(shipper._LOOK_RECORDS + 3):
        recorder.emit(Kind.REQUEST_END, handle, None)
    assert recorder.ship_here() == 0
    assert len(transport.records) == shipper._LOOK_RECORDS
    assert recorder.ship_here() > 0
    assert len(transport.records) == shipper._LOOK_RECORDS + 3


def test_an_engine_neither_waits_for_our_thread_nor_for_an_agent(resting):
    """While ours ships, or nobody takes anything, records stay where they are."""
    recorder, transport = resting
    recorder.emit(Kind.REQUEST_END, 1, None)
    with recorder._drainer._turn:
        assert recorder.ship_here() > 0
    transport.open = False
    assert recorder.ship_here() > 0
    assert recorder.queued() == 1
    transport.open = True
    recorder.ship_here()
    assert len(transport.records) == 1


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_what_fails_on_an_engines_thread_is_counted(resting, error):
    """An error of ours does not reach it; what a signal raises there does, with the records counted as dropped."""
    recorder, transport = resting

    def write(frame, records):
        raise error

    transport.write, kept = write, transport.write
    recorder.emit(Kind.REQUEST_END, 1, None)
    recorder.emit_many(Kind.REQUEST_END, [2, 3])
    if error is SystemExit:
        with pytest.raises(SystemExit):
            recorder.ship_here()
        assert recorder.errors == {}
    else:
        assert recorder.ship_here() > 0
        assert recorder.errors == {"shipper.ship_here": 1}
    transport.write = kept
    recorder.ship_here()
    assert transport.frames[-1].dropped_total == 3


def test_an_engine_asks_in_vain_where_nothing_is_shipped():
    """Before anything was recorded, and where no shipper can be started."""
    recorder = Recorder(10, lambda _: (_ for _ in ()).throw(OSError("no threads")))
    assert recorder.ship_here() == 0
    recorder.emit(Kind.REQUEST_END, 1, None)
    assert recorder.ship_here() > recorder.clock()
