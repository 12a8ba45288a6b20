from __future__ import annotations

from tempfile import TemporaryDirectory

import pytest

from axonize_core.errors import ConfigurationError
from axonize_core.settings import SETTINGS, Settings, get_settings, settings_markdown


def read(**env):
    return Settings.from_env({"HOME": "/nonexistent", **env})


def test_defaults_are_those_of_the_table():
    """An empty environment gives what the documentation says."""
    settings = read()
    assert not settings.disabled
    assert settings.auto_activation
    assert settings.agent == "auto"
    table = {s.env: s.default for s in SETTINGS}
    assert str(settings.queue_capacity) == table["AXONIZE_QUEUE_CAPACITY"]
    assert str(settings.export_queue_capacity) == table["AXONIZE_EXPORT_QUEUE_CAPACITY"]
    assert str(settings.gpu_interval_ms) == table["AXONIZE_GPU_INTERVAL_MS"]
    assert settings.gpu_provider == table["AXONIZE_GPU_PROVIDER"]
    assert all(f"`{s.env}`" in settings_markdown() for s in SETTINGS)
    assert get_settings() is get_settings()


@pytest.mark.parametrize("name", ["AXONIZE_DISABLED", "OTEL_SDK_DISABLED"])
def test_either_switch_turns_everything_off(name):
    """Our switch and OTel's both do, and doctor can say which one did."""
    settings = read(**{name: "true"})
    assert settings.disabled
    assert settings.disabled_by == name
    assert not settings.auto_activation


def test_the_opt_out_file_turns_everything_off(tmp_path):
    """A file is enough, for those who cannot change an environment."""
    (tmp_path / "axonize").mkdir()
    (tmp_path / "axonize/disabled").touch()
    assert read(XDG_CONFIG_HOME=str(tmp_path)).disabled
    assert read(AXONIZE_OPT_OUT_FILE=str(tmp_path / "axonize/disabled")).disabled_by.endswith("disabled")
    assert not read(AXONIZE_OPT_OUT_FILE=str(tmp_path / "other")).disabled


@pytest.mark.parametrize("environment", ["test", "development", "Development"])
def test_test_and_development_stay_quiet_unless_asked(environment):
    """What activates itself stays off there, unless AXONIZE_ENABLED says otherwise."""
    assert not read(ENVIRONMENT=environment).auto_activation
    assert read(ENVIRONMENT=environment, AXONIZE_ENABLED="1").auto_activation
    assert read(ENVIRONMENT="production").auto_activation


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AXONIZE_DISABLED", "maybe"),
        ("AXONIZE_QUEUE_CAPACITY", "many"),
        ("AXONIZE_QUEUE_CAPACITY", "0"),
        ("AXONIZE_GPU_INTERVAL_MS", "10"),
        ("AXONIZE_GPU_PROVIDER", "tpu"),
        ("AXONIZE_AGENT", "tcp://x"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(name, value):
    """The message names the variable and the value."""
    with pytest.raises(ConfigurationError, match=f"{name}=.*{value}"):
        read(**{name: value})


def test_otel_resource_attributes_are_read():
    """service.name may come from either OTel variable; OTEL_SERVICE_NAME wins."""
    env = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=a,team=x%20y, broken"}
    assert read(**env).service_name == "a"
    assert read(**env).resource["team"] == "x y"
    assert read(**env, OTEL_SERVICE_NAME="b").service_name == "b"


def test_the_fingerprint_covers_what_processes_must_agree_on():
    """Another endpoint or header means another agent; unrelated variables do not."""
    base = read().fingerprint
    assert read(OTEL_EXPORTER_OTLP_ENDPOINT="http://other").fingerprint != base
    assert read(OTEL_EXPORTER_OTLP_HEADERS="k=v").fingerprint != base
    assert read(UNRELATED="x").fingerprint == base


def test_the_runtime_directory_follows_the_platform():
    """Ours, then XDG's when it is there, then one of our own below /tmp."""
    assert read(AXONIZE_RUNTIME_DIR="/a").runtime_dir.as_posix() == "/a"
    with TemporaryDirectory(dir="/tmp") as xdg:  # short enough for a socket, unlike pytest's own
        assert read(XDG_RUNTIME_DIR=xdg).runtime_dir.as_posix() == f"{xdg}/axonize"
        assert read(XDG_RUNTIME_DIR=f"{xdg}/missing").runtime_dir == read().runtime_dir
    assert read().runtime_dir.name.startswith("axonize-")


def test_plugins_to_load_are_a_list_or_nothing():
    """Unset loads all; empty loads none."""
    assert read().load_plugins is None
    assert read(AXONIZE_LOAD_PLUGINS="").load_plugins == ()
    assert read(AXONIZE_LOAD_PLUGINS="a, b").load_plugins == ("a", "b")
