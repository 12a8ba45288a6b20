"""Deduplication logs: a block without a part is forgotten, and nothing else is."""

from __future__ import annotations

import pytest

from axonize_server.store.repair import forget_lost_blocks


@pytest.fixture
def table(tmp_path):
    """An engine's directory with one table; its log and its parts."""
    folder = tmp_path / "store" / "abc" / "abc-uuid"
    (folder / "deduplication_logs").mkdir(parents=True)

    def make(lines, parts):
        for part in parts:
            (folder / part).mkdir()
        log = folder / "deduplication_logs" / "deduplication_log_1.txt"
        log.write_text("".join(f"{line}\n" for line in lines))
        return log

    return make


def lines_of(*entries):
    return [f"{operation}\t{part}\t20261121_1_{number}" for number, (operation, part) in enumerate(entries)]


def test_what_has_its_part_stays(tmp_path, table):
    """Parts as inserted, merged into larger ones, or mutated; lines that take a block back; lines of no known form."""
    lines = lines_of((1, "20261121_1_1_0"), (1, "20261121_2_2_0"), (1, "20261121_3_3_0"), (2, "20261121_9_9_0"))
    log = table([*lines, "something else"], ["20261121_1_2_1", "20261121_3_3_0_7", "detached", "tmp_insert_x"])
    before = log.read_bytes()
    assert forget_lost_blocks(tmp_path) == []
    assert log.read_bytes() == before


def test_what_has_no_part_is_forgotten(tmp_path, table):
    """Neither a part of another partition nor a temporary one is the block's own; a second look finds nothing."""
    lines = lines_of((1, "20261121_1_1_0"), (1, "20261120_2_2_0"), (1, "20261121_2_2_0"))
    log = table(lines, ["20261121_1_1_0", "20261121_2_2_0", "tmp_insert_20261120_2_2_0", "20261119_1_5_1"])
    assert forget_lost_blocks(tmp_path) == ["20261120_2_2_0"]
    assert log.read_text().splitlines() == [lines[0], lines[2]]
    assert forget_lost_blocks(tmp_path) == []
    assert [path.name for path in log.parent.iterdir()] == [log.name]


def test_a_directory_that_is_not_there_yet(tmp_path):
    """The first start has nothing to repair."""
    assert forget_lost_blocks(tmp_path / "none") == []
