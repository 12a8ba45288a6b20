from __future__ import annotations

import pytest

from axonize_core.export.endpoint import Endpoint, queue_key
from axonize_core.settings import SETTINGS, Settings

P = "OTEL_EXPORTER_OTLP_"


def read(signal="traces", **env):
    return Endpoint.from_env(signal, {P + name: value for name, value in env.items()})


@pytest.mark.parametrize(
    ("env", "signal", "url", "secure"),
    [
        ({}, "traces", "http://localhost:4318/v1/traces", False),
        ({"ENDPOINT": "https://c:1/base/"}, "metrics", "https://c:1/base/v1/metrics", True),
        ({"ENDPOINT": "http://a", "TRACES_ENDPOINT": "http://b/as/is"}, "traces", "http://b/as/is", False),
        ({"ENDPOINT": "http://a", "TRACES_ENDPOINT": "http://b/as/is"}, "metrics", "http://a/v1/metrics", False),
        ({"PROTOCOL": "grpc"}, "traces", "localhost:4317", False),
        ({"PROTOCOL": "grpc", "ENDPOINT": "https://c:4317/x"}, "traces", "c:4317", True),
        ({"PROTOCOL": "grpc", "ENDPOINT": "https://c:4317", "INSECURE": "true"}, "traces", "c:4317", True),
        ({"PROTOCOL": "grpc", "ENDPOINT": "c:4317"}, "traces", "c:4317", True),
        ({"PROTOCOL": "grpc", "ENDPOINT": "c:4317", "INSECURE": "true"}, "traces", "c:4317", False),
        ({"PROTOCOL": "grpc", "ENDPOINT": "unix:///run/otel.sock", "INSECURE": "TRUE"}, "traces", "unix:///run/otel.sock", False),
        ({"TRACES_PROTOCOL": "grpc"}, "metrics", "http://localhost:4318/v1/metrics", False),
    ],
)  # fmt: skip
def test_the_endpoint_is_what_the_specification_makes_of_the_variables(env, signal, url, secure):
    """Path appended to the general one, the signal's own as it is; the scheme decides about TLS, then INSECURE."""
    endpoint = read(signal, **env)
    assert (endpoint.url, endpoint.secure, endpoint.problems) == (url, secure, ())


def test_a_signals_own_variable_wins_over_the_general_one():
    """For every variable there is."""
    general = {"HEADERS": "a=1", "TIMEOUT": "5000", "COMPRESSION": "gzip", "CERTIFICATE": "ca", "CLIENT_KEY": "k",
               "CLIENT_CERTIFICATE": "c"}  # fmt: skip
    own = {"HEADERS": "b=x%20y", "TIMEOUT": "7000", "COMPRESSION": "none", "CERTIFICATE": "ca2", "CLIENT_KEY": "k2",
           "CLIENT_CERTIFICATE": "c2"}  # fmt: skip
    env = {**general, **{f"TRACES_{name}": value for name, value in own.items()}}
    traces, metrics = read("traces", **env), read("metrics", **env)
    assert (traces.headers, traces.timeout_s, traces.compression) == ({"b": "x y"}, 7.0, "none")
    assert (metrics.headers, metrics.timeout_s, metrics.compression) == ({"a": "1"}, 5.0, "gzip")
    assert (traces.certificate, traces.client_key, traces.client_certificate) == ("ca2", "k2", "c2")
    assert (metrics.certificate, metrics.client_key, metrics.client_certificate) == ("ca", "k", "c")


@pytest.mark.parametrize(("text", "seconds"), [("", 10), ("10000", 10), ("10", 10), ("0.5", 0.5), ("250", 0.25)])
def test_the_timeout_is_read_as_the_specification_and_as_python_counts(text, seconds):
    """Milliseconds, as specified; below 100 seconds, as OpenTelemetry's Python exporters read the same variable."""
    assert read(TIMEOUT=text).timeout_s == seconds


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"PROTOCOL": "http/json"}, "PROTOCOL='http/json' is not supported; http/protobuf is used"),
        ({"COMPRESSION": "deflate"}, "COMPRESSION='deflate' is not supported"),
        ({"TIMEOUT": "soon"}, "TIMEOUT='soon'"),
        ({"TIMEOUT": "-1"}, "TIMEOUT='-1'"),
    ],
)
def test_what_cannot_be_used_is_named_and_a_default_taken(env, says):
    """A mistake in one variable does not stop the export."""
    endpoint = read(**env)
    assert says in endpoint.problems[0]
    assert (endpoint.protocol, endpoint.timeout_s, endpoint.gzip_bytes(1024)) == ("http/protobuf", 10.0, 1024)


def test_the_compression_variable_overrides_the_threshold():
    """gzip compresses all, none nothing, and without it the size decides."""
    assert [read(COMPRESSION=c).gzip_bytes(1024) for c in ("gzip", "none", "")] == [0, None, 1024]


def test_the_queues_key_is_where_and_as_whom():
    """Another place or credential is another queue; timeouts and compression are not."""
    base = queue_key([read(ENDPOINT="http://a")])
    assert queue_key([read(ENDPOINT="http://a", TIMEOUT="1", COMPRESSION="none")]) == base
    assert queue_key([read(TRACES_ENDPOINT="http://a/v1/traces")]) == base
    assert queue_key([read(ENDPOINT="http://b")]) != base
    assert queue_key([read(ENDPOINT="http://a", HEADERS="k=v")]) != base
    assert queue_key([read(ENDPOINT="http://a", CLIENT_CERTIFICATE="c")]) != base


@pytest.mark.parametrize(
    ("env", "address"),
    [
        ({"ENDPOINT": "https://c/x"}, ("c", 443)),
        ({}, ("localhost", 4318)),
        ({"PROTOCOL": "grpc", "ENDPOINT": "c:1"}, ("c", 1)),
    ],
)
def test_the_address_is_what_doctor_tries(env, address):
    """Host and port of either protocol."""
    assert read(**env).address() == address


def test_settings_of_the_queue_are_read_and_are_part_of_what_agents_share(tmp_path):
    """Defaults as documented; processes that differ in them do not share an agent."""
    settings, table = Settings.from_env({"HOME": str(tmp_path)}), {s.env: s.default for s in SETTINGS}
    assert str(settings.export_queue_bytes) == table["AXONIZE_EXPORT_QUEUE_BYTES"]
    assert str(settings.export_queue_age_s) == table["AXONIZE_EXPORT_QUEUE_AGE_S"]
    assert str(settings.export_gzip_bytes) == table["AXONIZE_EXPORT_GZIP_BYTES"]
    assert settings.state_dir == tmp_path / ".local/state/axonize"
    assert Settings.from_env({"HOME": "/nonexistent"}).state_dir is None, "a home that is not there is not made"
    assert str(Settings.from_env({"XDG_STATE_HOME": "/x"}).state_dir) == "/x/axonize"
    assert Settings.from_env({}).state_dir is None
    for name, value in (
        ("AXONIZE_STATE_DIR", "/s"),
        ("AXONIZE_EXPORT_GZIP_BYTES", "1"),
        ("OTEL_TRACES_EXPORTER", "none"),
    ):
        assert Settings.from_env({"HOME": "/h", name: value}).fingerprint != settings.fingerprint


def test_a_password_in_the_url_is_not_shown():
    """Logs, doctor and the file beside the queue say where to, not with which secret."""
    endpoint = read(ENDPOINT="https://user:secret@c:1/base")
    assert endpoint.url == "https://user:secret@c:1/base/v1/traces"
    assert (endpoint.shown_url, endpoint.origin) == ("https://c:1/base/v1/traces", "https://c:1")
