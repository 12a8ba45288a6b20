"""The example plugins as their READMEs say: installed by pip, run by a real agent, read back."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from axonize_core.events import RequestEvent, RequestRef, SourceInfo
from axonize_core.plugins import AgentContext, Plugins
from axonize_core.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


class Reader:
    """Somebody who follows the READMEs in an empty folder, with packages of their own."""

    def __init__(self, folder):
        self.folder = folder
        self.site = folder / "site"
        (folder / "examples").symlink_to(ROOT / "examples")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("AXONIZE_", "OTEL_"))}
        self.env = kept | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.site),
            "AXONIZE_RUNTIME_DIR": str(folder / "run"),
            # What `pip install` does by itself in an environment of one's own, here into a folder and without network.
            "PIP_TARGET": str(self.site),
            "PIP_NO_DEPS": "1",
            "PIP_NO_BUILD_ISOLATION": "0",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_ROOT_USER_ACTION": "ignore",
        }

    def blocks(self, example, language):
        text = (ROOT / "examples" / example / "README.md").read_text()
        return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)

    def type(self, block, **env):
        """Run the commands of a console block in one shell and return what they print."""
        script = "\n".join(line[2:] for line in block.splitlines() if line.startswith("$ "))
        result = subprocess.run(
            ["bash", "-euc", script],
            cwd=self.folder,
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A reader who installed both examples."""
    reader = Reader(tmp_path_factory.mktemp("reader"))
    for example in ("axonize-parquet", "axonize-tenant"):
        commands = [line for block in reader.blocks(example, "console") for line in block.splitlines()]
        (install,) = (line for line in commands if line.startswith("$ pip install"))
        reader.type(install)
    return reader


@pytest.fixture
def installed(reader, monkeypatch):
    """Import a module of the installed examples into this process; forgotten afterwards."""
    monkeypatch.syspath_prepend(str(reader.site))
    yield importlib.import_module
    for name in [name for name in sys.modules if name.startswith(("axonize_parquet", "axonize_tenant"))]:
        del sys.modules[name]


def wait_for(condition, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "not seen in time"
        time.sleep(0.1)
    return found


def test_the_parquet_readme_runs(reader, otlp_sink):
    """A served model's requests lie in a file that the README's own reader prints; spans went out as ever."""
    pytest.importorskip("transformers")
    _, *commands = (line for line in reader.blocks("axonize-parquet", "console")[0].splitlines())
    printed = reader.type("\n".join(commands), OTEL_EXPORTER_OTLP_ENDPOINT=otlp_sink.url)
    assert re.search(r"^parquet +axonize-parquet 0\.1\.0 +loaded +configure$", printed, re.MULTILINE), printed
    wait_for(lambda: list(reader.folder.glob("events/batches/*.parquet")))
    (code,) = reader.blocks("axonize-parquet", "python")
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=reader.folder,
        env=reader.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [len(row) for row in rows] == [4] * 8, result.stderr
    assert {row[0] for row in rows} == {f"demo-{n:03d}" for n in range(8)}
    assert not list(reader.folder.glob("events/*/.*.part"))
    assert sum(span.name == "request" for span in otlp_sink.spans) == 8


def test_the_tenant_readme_runs_up_to_the_store(reader, tmp_path):
    """What the file says of a tenant is on its request's span in the collector; who is not in it has nothing."""
    pytest.importorskip("transformers")
    from axonize_server.local import LocalCollector, free_port

    (reader.folder / "tenants.json").write_text(reader.blocks("axonize-tenant", "json")[0])
    (reader.folder / "serve.py").write_text(reader.blocks("axonize-tenant", "python")[0])
    *serve, trace = reader.blocks("axonize-tenant", "console")[1].splitlines()
    collector = LocalCollector(tmp_path, http_port=free_port(), api_port=free_port())
    with collector.running():
        env = {"AXONIZE_API_URL": collector.client.url, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.otlp_url}
        reader.type("\n".join(serve), AXONIZE_LOAD_PLUGINS="tenant", **env)
        wait_for(lambda: len(collector.client.requests()) == 3)
        acme = request_span(reader.type(trace, **env))
        globex = request_span(reader.type(trace.replace("acme", "globex"), **env))
        nobody = request_span(reader.type(trace.replace("acme", "nobody"), **env))
    assert acme["tenant.name"] == "Acme Ltd"
    assert acme["tenant.team"] == "search"
    assert acme["tenant.cost_usd"] == pytest.approx(acme["gen_ai.usage.output_tokens"] / 1000 * 0.4)
    assert globex["tenant.name"] == "Globex"
    assert "tenant.cost_usd" not in globex
    assert not [name for name in nobody if name.startswith("tenant.")]


def request_span(printed):
    """The attributes of the request's own span in what `axonize trace --json` printed."""
    return next(span for span in json.loads(printed)["spans"] if span["name"] == "request")["attributes"]


SOURCE = SourceInfo("inst", "transformers", "svc", "tiny", "hf", ("cpu", 0, None), {}, 1)


def request(seq, *, tokens=4, **attributes):
    ref = RequestRef(seq, 0xABC, 2)
    return RequestEvent(
        SOURCE, ref, 0, f"r-{seq}", "chat", 10**18 + seq, 5, output_tokens=tokens, attributes=tuple(attributes.items())
    )


@contextlib.contextmanager
def configured(module, **settings):
    """A manager with the module configured by these settings; shut down at the end."""
    plugins = Plugins()
    plugins.register(module)
    plugins.configure(AgentContext(Settings.from_env(settings), plugins, None))
    yield plugins
    plugins.call("axonize_shutdown", timeout_s=10.0)


def test_files_rotate_and_hold_every_row(installed, tmp_path):
    """A full row group is written, an old file is finished while the agent runs, the rest at the end; types are kept."""
    parquet = importlib.import_module("pyarrow.parquet")
    settings = {"ROW_GROUP_ROWS": "10", "FILE_S": "0", "DIR": str(tmp_path)}
    with configured(
        installed("axonize_parquet"), **{f"AXONIZE_PLUGIN_PARQUET_{k}": v for k, v in settings.items()}
    ) as plugins:
        plugins.call("axonize_requests", events=[request(i, tokens=None) for i in range(25)])
        wait_for(lambda: list(tmp_path.glob("requests/*.parquet")))
        plugins.call("axonize_requests", events=[request(i, app="x") for i in range(25, 30)])
    facts = plugins.facts()["facts"]["axonize_parquet.ParquetSink"]
    assert (facts["rows_written"], facts["rows_dropped"], facts["rows_waiting"]) == (30, 0, 0)
    files = sorted(tmp_path.glob("requests/*.parquet"))
    assert len(files) == 2
    rows = [row for file in files for row in parquet.read_table(file).to_pylist()]
    assert [row["request_seq"] for row in rows] == list(range(30))
    assert rows[0]["trace_id"] == f"{0xABC:032x}"
    assert rows[0]["output_tokens"] is None
    assert rows[29]["attributes"] == '{"app": "x"}'
    assert str(parquet.read_schema(files[0]).field("start_time").type) == "timestamp[ns, tz=UTC]"


def test_what_does_not_fit_into_memory_is_dropped_and_counted(installed, tmp_path):
    """The queue is bounded: the newest rows are dropped, the others written."""
    settings = {"AXONIZE_PLUGIN_PARQUET_QUEUE_ROWS": "20", "AXONIZE_PLUGIN_PARQUET_DIR": str(tmp_path)}
    with configured(installed("axonize_parquet"), **settings) as plugins:
        plugins.call("axonize_requests", events=[request(i) for i in range(50)])
    facts = plugins.facts()["facts"]["axonize_parquet.ParquetSink"]
    assert (facts["rows_written"], facts["rows_dropped"]) == (20, 30)


def test_a_directory_that_goes_away_loses_rows_with_their_count(installed, tmp_path):
    """What cannot be written is counted and has a reason; when there is room again it goes on."""
    settings = {"AXONIZE_PLUGIN_PARQUET_ROW_GROUP_ROWS": "5", "AXONIZE_PLUGIN_PARQUET_DIR": str(tmp_path)}
    with configured(installed("axonize_parquet"), **settings) as plugins:
        facts = lambda: plugins.facts()["facts"]["axonize_parquet.ParquetSink"]  # noqa: E731
        (tmp_path / "requests").rmdir()
        plugins.call("axonize_requests", events=[request(i) for i in range(5)])
        wait_for(lambda: facts().get("write_failures"))
        (tmp_path / "requests").mkdir()
        plugins.call("axonize_requests", events=[request(i) for i in range(7)])
    assert (facts()["rows_lost"], facts()["rows_written"]) == (5, 7)
    assert "No such file" in facts()["parquet_error"]


@pytest.mark.parametrize(
    ("module", "settings", "says"),
    [
        ("axonize_parquet", {}, "set AXONIZE_PLUGIN_PARQUET_DIR"),
        (
            "axonize_parquet",
            {"AXONIZE_PLUGIN_PARQUET_DIR": ".", "AXONIZE_PLUGIN_PARQUET_FILE_S": "x"},
            "invalid literal",
        ),
        ("axonize_tenant", {}, "set AXONIZE_PLUGIN_TENANT_FILE"),
        ("axonize_tenant", {"AXONIZE_PLUGIN_TENANT_FILE": "/nowhere.json"}, "/nowhere.json"),
    ],
)
def test_what_is_not_set_up_is_disabled_with_a_reason(installed, module, settings, says):
    """An example that lacks its settings says which."""
    with configured(installed(module), **settings) as plugins:
        assert says in plugins.disabled[module]


def test_a_changed_tenant_file_is_read_and_a_broken_one_is_not(installed, tmp_path, monkeypatch):
    """YAML works as well; a broken change leaves what was known, and says so; unknown tenants are counted."""
    directory = installed("axonize_tenant.directory")
    monkeypatch.setattr(directory, "LOOK_S", 0.0)
    file = tmp_path / "tenants.yaml"
    file.write_text("attribute: app.tenant\ntenants: {acme: {tenant.name: Acme, usd_per_1k_output_tokens: 2}}\n")
    with configured(installed("axonize_tenant"), AXONIZE_PLUGIN_TENANT_FILE=str(file)) as plugins:

        def ask(tenant, **more):
            return plugins.call("axonize_span_attributes", events=[request(1, **{"app.tenant": tenant}, **more)])[0][0]

        def facts():
            return plugins.facts()["facts"]["axonize_tenant.Enricher"]

        assert ask("acme") == {"tenant.name": "Acme", "tenant.cost_usd": 0.008}
        assert ask("acme", tokens=None) == {"tenant.name": "Acme"}
        assert ask("nobody") is None
        assert (facts()["tenants"], facts()["tenants_unknown"], facts()["tenant_file_error"]) == (1, 1, "")
        for broken in ("tenants: [", "[]", "attribute: x"):
            file.write_text(broken)
            assert ask("acme")["tenant.name"] == "Acme"
            assert "tenants.yaml" in facts()["tenant_file_error"]
        file.write_text("attribute: app.tenant\ntenants: {acme: {tenant.name: Acme Ltd}}\n")
        assert ask("acme") == {"tenant.name": "Acme Ltd"}
        assert facts()["tenant_file_error"] == ""
    assert plugins.failures == {}
