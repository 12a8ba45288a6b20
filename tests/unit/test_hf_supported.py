"""Which versions and objects the transformers integration takes."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest

import axonize_hf
from axonize_core.errors import IntegrationUnavailableError
from axonize_core.settings import get_settings
from axonize_hf import instrumentation as module
from axonize_hf._supported import added_later, has, is_supported


@pytest.mark.parametrize(
    ("version", "expected"),
    [("4.45.2", False), ("4.46.0", True), ("5.0.0rc1", True), ("5.23.0", True), ("6.0.0", False), ("main", False)],
)
def test_the_supported_range(version, expected):
    """From 4.46 up to but without 6, release candidates included."""
    assert is_supported(version) is expected


@pytest.mark.parametrize(
    ("capability", "version", "expected"),
    [
        ("continuous_batching", "4.52.4", False),
        ("continuous_batching", "4.53.0", True),
        ("record_timestamps", "5.0.0rc1", True),
        ("contrastive_search", "4.55.4", True),
        ("contrastive_search", "4.56.0", False),
        ("record_timestamps", "main", False),
    ],
)
def test_what_a_version_can_do(capability, version, expected):
    """A capability begins with a version, and may end before one."""
    assert has(capability, version) is expected


def test_what_came_later():
    """What a version cannot do yet is named with the version that can; what was removed is not."""
    assert added_later("5.0.0") == ["continuous batching without a GPU (5.1)"]
    assert added_later("5.23.0") == []


def test_an_unknown_version_passes_through_with_one_warning(monkeypatch, caplog):
    """With a version outside the range the object comes back untouched; the log says so once."""
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(__version__="9.9.9"))
    module._check.cache_clear()
    target = object()
    with caplog.at_level(logging.WARNING, "axonize.hf"):
        assert axonize_hf.instrument(target) is target
        assert axonize_hf.instrument(target) is target
    assert [record.message for record in caplog.records] == [
        "transformers 9.9.9 is not supported (>=4.46,<6.0): nothing will be recorded; upgrade axonize"
    ]


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    """Without transformers, instrument raises and names the next step."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(IntegrationUnavailableError, match="pip install transformers"):
        axonize_hf.instrument(object())


def test_other_objects_are_refused(monkeypatch):
    """What is no pipeline and no model is refused with what would be taken."""
    fake = SimpleNamespace(__version__="5.23.0", Pipeline=list, PreTrainedModel=dict)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    with pytest.raises(IntegrationUnavailableError, match="neither a transformers Pipeline nor a PreTrainedModel"):
        axonize_hf.instrument(object())


def test_the_device_is_told_by_type_index_and_uuid(monkeypatch):
    """A CPU is cpu:0; a CUDA device has its index, and its uuid as NVML writes it, or none where torch has none."""

    def model(kind, index):
        device = SimpleNamespace(type=kind, index=index)
        return SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=device)]))

    bare = "1c2d3e4f-0000-4000-8000-00000000abcd"
    cuda = SimpleNamespace(get_device_properties=lambda _: SimpleNamespace(uuid=bare))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert module._device(model("cpu", None)) == ("cpu", 0, None)
    assert module._device(model("cuda", 3)) == ("cuda", 3, f"GPU-{bare}")
    cuda.get_device_properties = lambda _: SimpleNamespace()
    assert module._device(model("cuda", 1)) == ("cuda", 1, None)
    assert module._device(SimpleNamespace(parameters=lambda: iter(()))) == ("cpu", 0, None)


def test_a_setting_that_cannot_be_used_stops_no_server(monkeypatch, caplog):
    """A misspelt setting is said with its name and value; the object comes back untouched."""
    monkeypatch.setenv("AXONIZE_QUEUE_CAPACITY", "many")
    get_settings.cache_clear()
    target = object()
    try:
        with caplog.at_level(logging.ERROR, "axonize.hf"):
            assert axonize_hf.instrument(target) is target
    finally:
        get_settings.cache_clear()
    assert "AXONIZE_QUEUE_CAPACITY='many' is no whole number" in caplog.text
