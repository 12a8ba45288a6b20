from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from axonize_core.absence import KEPT_S, AbsenceNote, read_absences
from axonize_core.runtime_dir import choose_runtime_dir, obstacle_to_socket, runtime_dirs
from axonize_core.settings import Settings
from axonize_core.starter import AgentStarter, reap, wait_for_end


@pytest.fixture
def short_path():
    """A directory whose path leaves room for a socket's name, unlike pytest's own."""
    with TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)


def test_what_was_asked_for_is_the_only_place():
    """AXONIZE_RUNTIME_DIR is not second-guessed, and is absolute for an agent that works elsewhere."""
    assert runtime_dirs({"AXONIZE_RUNTIME_DIR": "/a", "XDG_RUNTIME_DIR": "/"}) == [Path("/a")]
    assert choose_runtime_dir({"AXONIZE_RUNTIME_DIR": "run"}) == Path.cwd() / "run"


def test_the_places_are_tried_in_their_order(tmp_path):
    """XDG's if it is ours, /tmp, TMPDIR, and shared memory last; each once."""
    env = {"XDG_RUNTIME_DIR": str(tmp_path), "TMPDIR": "/tmp"}
    own = f"axonize-{os.getuid()}"
    assert runtime_dirs(env) == [tmp_path / "axonize", Path("/tmp") / own, Path("/dev/shm") / own]


@pytest.mark.parametrize(("name", "says"), [("x" * 120, "at most 107 bytes"), ("file", "does not belong to uid")])
def test_an_obstacle_is_named(short_path, name, says):
    """A path that is too long, or is no directory of ours."""
    (short_path / "file").touch()
    assert says in obstacle_to_socket(short_path / name)
    assert obstacle_to_socket(short_path / "new") == ""


def test_a_directory_to_be_made_needs_a_place_to_be_made_in(short_path):
    """A file is no place; nothing is made by asking."""
    (short_path / "file").touch()
    assert obstacle_to_socket(short_path / "a" / "b") == ""
    assert "Not a directory" in obstacle_to_socket(short_path / "file" / "b")
    assert [path.name for path in short_path.iterdir()] == ["file"]


def test_an_absence_is_noted_after_a_while_and_taken_back(tmp_path, monkeypatch):
    """Five seconds without an agent make a note; finding one removes it."""
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    note = AbsenceNote(tmp_path, "abcdefghij", 7)
    note.missing("nobody", 1, 0)
    assert read_absences(tmp_path) == []
    now += 6
    note.missing("nobody", 3, 2)
    (absence,) = read_absences(tmp_path)
    assert (absence.pid, absence.since_s, absence.waiting, absence.dropped) == (7, 1000.0, 3, 2)
    assert (absence.reason, absence.ended) == ("nobody", False)
    note.found()
    assert read_absences(tmp_path) == []


def test_a_process_that_lost_nothing_leaves_no_note(tmp_path):
    """Only what was lost is worth a file; one that cannot be written is nobody's failure."""
    AbsenceNote(tmp_path, "abcdefghij", 7).ended(0, 0)
    assert list(tmp_path.iterdir()) == []
    AbsenceNote(tmp_path / "missing", "abcdefghij", 7).ended(1, 0)
    AbsenceNote(tmp_path, "abcdefghij", 7).ended(1, 2)
    assert [(a.dropped, a.ended) for a in read_absences(tmp_path)] == [(3, True)]


def test_old_notes_go_and_broken_ones_are_left_out(tmp_path):
    """A day later nobody asks any more."""
    for name, age_s in (("engine-1-old.json", KEPT_S + 60), ("engine-2-new.json", 60)):
        (tmp_path / name).write_text("no json")
        os.utime(tmp_path / name, (time.time() - age_s,) * 2)
    AbsenceNote(tmp_path, "abcdefghij", 7).ended(1, 0)
    assert {p.name for p in tmp_path.iterdir()} == {"engine-2-new.json", "engine-7-abcdefgh.json"}
    assert len(read_absences(tmp_path)) == 1


def test_an_agent_that_never_comes_up_is_ended(tmp_path):
    """After its time it is killed and said; a start under way is not repeated before."""
    now = 0.0
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o700)
    starter = AgentStarter(Settings(agent_python=str(sleeper)), lambda: now)
    path = tmp_path / "a.sock"
    starter.ensure(path)
    process = starter._process
    starter.ensure(path)
    assert starter._process is process
    now = 31.0
    starter.ensure(path)
    assert process.returncode == -9
    assert "status -9" in starter.failure
    starter._process.kill()
    starter._process.wait()
    starter.forget()


def test_a_start_that_went_well_leaves_no_process(tmp_path):
    """The agent has left its first process, which is then taken off the process table."""
    starter = AgentStarter(Settings(agent_python="/bin/true"), time.monotonic)
    starter.ensure(tmp_path / "a.sock")
    process, deadline = starter._process, time.monotonic() + 5
    while starter._process is not None and time.monotonic() < deadline:
        starter.settle()
    assert (starter._process, process.returncode, starter.failure) == (None, 0, "")


def test_nobody_starts_a_second_agent_for_a_socket(tmp_path):
    """Whose lock is held has one already; its end can be waited for."""
    import fcntl

    with (tmp_path / "a.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        starter = AgentStarter(Settings(agent_python="/bin/false"), time.monotonic)
        starter.ensure(tmp_path / "a.sock")
        assert starter._process is None
        assert not wait_for_end(tmp_path / "a.sock", 0.03)
    assert wait_for_end(tmp_path / "a.sock", 1)
    assert not wait_for_end(tmp_path / "missing" / "a.sock", 1)


def test_only_children_of_ours_are_taken_off_the_process_table():
    """Neither pid 0 nor 1 nor somebody else's process; a child that lives is asked about again."""
    pid = os.posix_spawn("/bin/sleep", ["sleep", "0.1"], {})
    assert reap(pid) == pid
    deadline = time.monotonic() + 5
    while reap(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [reap(other) for other in (0, 1, -1, os.getppid())] == [0, 0, 0, 0]
