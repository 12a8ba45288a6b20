"""What the fuzzer of axonize_server started from and what it found, replayed without it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fuzz import oracles, seeds

CORPUS = Path(oracles.__file__).parent / "corpus"
FILES = sorted(CORPUS.glob("*/*"))


@pytest.fixture(scope="module", autouse=True)
def _closed():
    yield
    oracles.close()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_an_input_passes_its_oracle(path):
    """Nothing but documented refusals, and what is accepted is what the official parser reads."""
    oracles.ORACLES[path.parent.name](path.read_bytes())


def test_conversations_say_what_they_mean(monkeypatch):
    """Of the seeds of raw HTTP/2, these hold so many whole calls; the oracle asks only that they are survived."""
    intakes = []

    class Intake(oracles.FakeIntake):
        def __init__(self):
            super().__init__()
            intakes.append(self)

    monkeypatch.setattr(oracles, "FakeIntake", Intake)
    body = seeds.bodies()["traces"][1]
    for said in seeds.conversations(body):
        oracles.grpc_call(bytes([seeds.RAW]) + said)
    assert [len(intake.taken) for intake in intakes] == [1, 1, 1, 2, 1, 1, 0, 0, 1]
    assert {taken for intake in intakes for taken in intake.taken} == {("traces", body)}


def test_every_door_has_a_small_corpus():
    """At most 300 files and 500 KB together, some for each oracle."""
    assert {path.parent.name for path in FILES} == set(oracles.ORACLES)
    assert len(FILES) <= 300
    assert sum(path.stat().st_size for path in FILES) <= 500_000


def test_an_oracle_sees_a_wrong_count(monkeypatch):
    """An answer that does not fit the body, and a message whose checksum is wrong, do not pass."""
    body = bytes([0]) + seeds.bodies()["traces"][1]
    oracles.http(body)
    right = oracles.VALIDATORS["traces"]
    monkeypatch.setitem(oracles.VALIDATORS, "traces", lambda *given: right(*given)._replace(records=7))
    for oracle in (oracles.http, oracles.grpc_call):
        with pytest.raises(AssertionError):
            oracle(body)
    monkeypatch.setattr(oracles, "messages", lambda data: [(message, end) for message, end, _ in oracles.frames(data)])
    with pytest.raises(AssertionError):
        oracles.spool((CORPUS / "spool" / "seed-001").read_bytes())
