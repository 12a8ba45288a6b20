"""Every task and mode on every version of transformers that is tried, against the table in the docs."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import hf_matrix
from axonize_hf._supported import CAPABILITIES, TESTED, has, is_supported
from hf_matrix_table import Cell, read, render
from hf_matrix_versions import CannotInstallError

PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


@pytest.mark.timeout(hf_matrix.LIMIT_S)
@pytest.mark.parametrize("version", TESTED)
def test_the_table_is_what_ran(version):
    """Outputs are identical and events right in every mode a version has; the docs say which it has not, and why."""
    try:
        cells = hf_matrix.run(version, [])
    except CannotInstallError as e:
        pytest.skip(f"transformers {version} cannot be installed: {e}")
    assert [f"{c.task} · {c.mode}: {c.why}" for c in cells if c.result == "failed"] == []
    assert hf_matrix.differences(version, cells) == []


# What shows a capability: a row, and what the library says there when it has not got it.
SHOWN_BY = {
    "prefill_chunking": (("generate", "chunked prefill"), "not used by the model"),
    "continuous_batching": (("generate", "continuous batching"), "AttributeError"),
    "continuous_batching_on_cpu": (("generate", "continuous batching"), ""),
    "contrastive_search": (("generate", "contrastive search"), ""),
    "group_beam_search": (("generate", "diverse beam search"), ""),
    "text2text_pipelines": (("summarization", "list"), ""),
    "question_answering": (("question-answering", "list"), ""),
}


@pytest.mark.parametrize("capability", SHOWN_BY)
def test_capabilities_are_what_ran(capability):
    """What the data says that a version can do is what the table of runs says."""
    row, reason = SHOWN_BY[capability]
    for version, column in read(hf_matrix.DOCUMENT.read_text()).items():
        lacking = column[row] != "yes" and reason in column[row]
        assert has(capability, version) is not lacking, version


def test_only_the_times_of_tokens_need_more_than_the_table():
    """Every capability but one is shown by a row; that one needs a GPU where it began."""
    assert {c.name for c in CAPABILITIES} - set(SHOWN_BY) == {"record_timestamps"}


def test_every_row_is_recorded_somewhere():
    """No row of the table is a mode that no version has, and all versions have the same rows."""
    columns = read(hf_matrix.DOCUMENT.read_text())
    assert list(columns) == list(TESTED)
    rows = [list(column) for column in columns.values()]
    assert all(row == rows[0] for row in rows)
    never = [row for row in rows[0] if all(column[row] != "yes" for column in columns.values())]
    assert never == []


def test_the_tried_versions_are_supported_and_the_newest_is_the_pinned_one():
    """Each tried version lies in the supported range; the newest is the one all other tests run on."""
    assert all(map(is_supported, TESTED))
    assert f'"transformers=={TESTED[-1]}"' in PYPROJECT.read_text()


def test_a_table_can_be_read_back():
    """What is rendered reads back as what went in, failures included."""
    cells = [
        Cell("1.0", "generate", "generate", "greedy", "ok", ""),
        Cell("1.0", "generate", "generate", "beam, wide", "unsupported", "ValueError: no `beams`"),
        Cell("2.0", "generate", "generate", "greedy", "ok", ""),
        Cell("2.0", "generate", "generate", "beam, wide", "failed", "steps"),
    ]
    greedy, beam = ("generate", "greedy"), ("generate", "beam, wide")
    assert read(render(cells)) == {
        "1.0": {greedy: "yes", beam: "`ValueError: no beams`"},
        "2.0": {greedy: "yes", beam: "**failed**"},
    }
