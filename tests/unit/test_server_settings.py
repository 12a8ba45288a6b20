"""The collector's settings: where a value comes from, what is refused, and that the committed texts are current."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from axonize_core.errors import ConfigurationError
from axonize_server.settings import Settings, default_data_dir, load_settings
from axonize_server.settings_texts import docs, env_example, main, options

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    for name in Settings.model_fields:
        monkeypatch.delenv(f"AXONIZE_{name.upper()}", raising=False)
    monkeypatch.delenv("AXONIZE_CONFIG", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


@pytest.fixture
def config(monkeypatch, tmp_path):
    """Writes the YAML file and names it."""

    def write(text):
        path = tmp_path / "axonize.yaml"
        path.write_text(text)
        monkeypatch.setenv("AXONIZE_CONFIG", str(path))

    return write


def test_defaults_need_nothing(tmp_path, monkeypatch):
    """Everything lies under one data directory and listens on loopback."""
    settings = load_settings()
    assert settings.data_dir == tmp_path / "axonize"
    assert settings.store == f"chdb://{tmp_path}/axonize/clickhouse"
    assert settings.registry == f"sqlite:///{tmp_path}/axonize/registry.db"
    assert settings.spool_dir == tmp_path / "axonize" / "spool"
    assert (settings.host, settings.http_port, settings.grpc_port, settings.api_port) == ("127.0.0.1", 4318, None, 4319)
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_data_dir() == Path.home() / ".local/share/axonize"


def test_a_flag_wins_over_environment_over_file_over_default(monkeypatch, config):
    """Each source covers the ones below it and only for the settings it names."""
    config("http_port: 1\napi-port: 2\ngrpc_port: 3\nworkers: 4\n")
    monkeypatch.setenv("AXONIZE_API_PORT", "20")
    monkeypatch.setenv("AXONIZE_GRPC_PORT", "30")
    settings = load_settings(grpc_port=300, tenant=None)
    assert (settings.http_port, settings.api_port, settings.grpc_port, settings.workers) == (1, 20, 300, 4)
    assert settings.tenant == "default"


def test_an_empty_variable_is_no_value(monkeypatch):
    """As compose files leave them."""
    monkeypatch.setenv("AXONIZE_HTTP_PORT", "")
    assert load_settings().http_port == 4318


def test_variables_in_the_file_are_replaced(monkeypatch, config):
    """``${VAR}`` takes the variable, ``${VAR:-default}`` stands in where it is missing or empty."""
    monkeypatch.setenv("PW", "s3cret")
    monkeypatch.setenv("EMPTY", "")
    config('store: "http://user:${PW}@${DB_HOST:-db}:8123"\nhttp_port: ${PORT:-99}\ntenant: a${EMPTY}b${EMPTY:-c}\n')
    settings = load_settings()
    assert settings.store == "http://user:s3cret@db:8123"
    assert (settings.http_port, settings.tenant) == (99, "abc")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("http_prot: 1", "no setting 'http_prot'"),
        ("store: ${NOWHERE}", "NOWHERE"),
        ("- a\n- b", "key: value"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_wrong_file_is_explained(config, text, match):
    """The message names what is wrong in it."""
    config(text)
    with pytest.raises(ConfigurationError, match=match):
        load_settings()


def test_an_empty_file_is_fine_and_a_missing_one_is_not(config, monkeypatch):
    """A name that leads nowhere is a mistake, not a default."""
    config("# nothing yet\n")
    assert load_settings().http_port == 4318
    monkeypatch.setenv("AXONIZE_CONFIG", "/nowhere/axonize.yaml")
    with pytest.raises(ConfigurationError, match="/nowhere"):
        load_settings()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_only_loopback_is_listened_on(host):
    """Until the collector can authenticate, nobody outside may reach it."""
    with pytest.raises(ConfigurationError, match=r"--host.*loopback"):
        load_settings(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_every_loopback_is(host):
    """Either family, any of its addresses."""
    assert load_settings(host=host).host == host


def test_a_bad_value_names_flag_and_variable():
    """The message says what to change."""
    with pytest.raises(ConfigurationError, match=r"--http-port \(AXONIZE_HTTP_PORT\) cannot be 99999"):
        load_settings(http_port=99999)


def test_settings_are_frozen():
    """Read once, passed down, never changed."""
    with pytest.raises(ValueError, match="frozen"):
        load_settings().workers = 2


def test_each_setting_is_an_option(tmp_path):
    """A command gets every field as a flag; what is not given stays None."""

    @click.command()
    @options()
    def command(**flags):
        assert set(flags) == set(Settings.model_fields)
        click.echo(load_settings(**flags).model_dump_json())

    flags = ["--http-port", "1", "--segment-max-age-s", "0.5", "--data-dir", str(tmp_path / "x")]
    result = CliRunner().invoke(command, flags, catch_exceptions=False)
    settings = Settings.model_validate_json(result.output)
    assert (settings.http_port, settings.segment_max_age_s, settings.data_dir) == (1, 0.5, tmp_path / "x")
    assert "--grpc-port INTEGER" in CliRunner().invoke(command, ["--help"]).output

    @click.command()
    @options("store")
    def narrow(**flags):
        assert set(flags) == {"store"}

    assert CliRunner().invoke(narrow, ["--store", "x"]).exit_code == 0


def test_the_generated_files_are_current():
    """``make docs`` has been run since the settings changed."""
    assert (ROOT / ".env.example").read_text() == env_example()
    assert (ROOT / "docs" / "collector-settings.md").read_text() == docs()


def test_the_generator_is_a_command(monkeypatch, capsys):
    """It prints one of the two texts, or says how it is used."""
    monkeypatch.setattr("sys.argv", ["settings", "--docs"])
    main()
    assert capsys.readouterr().out == docs()
    monkeypatch.setattr("sys.argv", ["settings"])
    with pytest.raises(SystemExit, match="--env-example"):
        main()
