from types import SimpleNamespace

import pytest

from axonize_core import doctor
from axonize_vllm import _supported


@pytest.fixture
def installed(monkeypatch):
    """Pretend a version of vLLM."""
    return lambda version: monkeypatch.setattr(doctor, "_version", lambda package: version)


@pytest.mark.parametrize(("allowed", "count"), [(None, 0), ("a,axonize", 0), ("a", 1), ("", 1), ("a, axonize", 1)])
def test_list_of_plugins_that_hides_us_is_a_problem(allowed, count, installed, monkeypatch):
    """With what to do; nothing else can say it, since nothing of ours is loaded then."""
    installed("0.32.0")
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    if allowed is not None:
        monkeypatch.setenv("VLLM_PLUGINS", allowed)
    found = list(doctor._hindrances(_supported))
    assert [finding.level for finding in found] == ["problem"] * count
    assert all("axonize run -- vllm serve" in finding.text for finding in found)


def test_without_vllm_its_variables_do_not_matter(installed, monkeypatch):
    """A VLLM_PLUGINS that is left over hides nothing."""
    installed(None)
    monkeypatch.setenv("VLLM_PLUGINS", "a")
    assert list(doctor._hindrances(_supported)) == []


def test_untested_version_of_an_engine_with_a_self_test_is_a_note(installed):
    """It is recorded as far as its places are the same, unlike a framework without a self-test."""
    installed("0.99.0")
    finding = doctor._integration(_supported)
    assert (finding.level, "was not tested" in finding.text) == ("note", True)
    without = SimpleNamespace(ENGINE="vllm", SUPPORTED=_supported.SUPPORTED, is_supported=lambda version: False)
    assert doctor._integration(without).level == "problem"


def test_each_live_engine_has_a_row_with_what_is_recorded():
    """A fall-back is a problem, since steps are missing then."""
    facts = {"engine": "vllm", "model": "tiny", "ai.engine.version": "0.32.0", "ai.engine.id": "1f0c3/0"}
    finding = doctor._engine(facts | {"ai.capabilities": "scheduler,frontend,worker"})
    assert (finding.part, finding.level) == ("engines", "ok")
    assert finding.text == "vllm 0.32.0 tiny (1f0c3/0): scheduler, frontend, worker"
    assert doctor._engine(facts | {"ai.capabilities": "stat_logger,worker"}).level == "problem"
