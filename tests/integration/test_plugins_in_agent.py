"""Third-party plugins in a real agent process, good and bad, and what `axonize plugins` says of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

AXONIZE = Path(sys.executable).parent / "axonize"
PLUGINS = {
    "good": """
        from axonize_core import hookimpl
        import click

        @hookimpl
        def axonize_span_attributes(events):
            return [{"tenant": "acme"}] * len(events)

        @hookimpl
        def axonize_register_commands(cli):
            cli.add_command(click.Command("greet", callback=lambda: click.echo("hello")))
        """,
    "greedy": """
        from axonize_core import hookimpl
        import click

        @hookimpl
        def axonize_register_commands(cli):
            cli.add_command(click.Command("doctor", callback=lambda: click.echo("all is well")))
        """,
    "missing": "import no_such_module_at_all",
    "exits": "raise SystemExit(3)",
    "misspelt": "from axonize_core import hookimpl\n@hookimpl\ndef axonize_reqests(events): ...",
    "unusable": """
        from axonize_core import hookimpl

        @hookimpl
        def axonize_configure(context):
            raise SystemExit("cannot work here")
        """,
    "short": """
        from axonize_core import hookimpl

        @hookimpl
        def axonize_span_attributes(events):
            return []

        @hookimpl
        def axonize_register_commands(cli):
            raise SystemExit(4)
        """,
    "slow": """
        from axonize_core import hookimpl
        import time

        @hookimpl
        def axonize_requests(events):
            time.sleep(0.12)
        """,
}
ENGINE = """
import sys
from axonize_core.frames import Kind
from axonize_core.recorder import get_recorder
rec = get_recorder()
src = rec.source("transformers", "", "tiny", "hf", ("cpu", 0, None))
seq = rec.next_handle()
rec.emit(Kind.REQUEST, seq, (src, rec.clock(), "r1", None, "chat", 3, None))
rec.emit(Kind.REQUEST_END, seq, ("length", 3, 1, None, None))
assert rec.flush(30)
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment of processes that have all these plugins installed."""
    site = tmp_path_factory.mktemp("site")
    for name, source in PLUGINS.items():
        (site / f"third_party_{name}.py").write_text(textwrap.dedent(source))
        info = site / f"dist_{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist-{name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[axonize]\n{name} = third_party_{name}\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AXONIZE_", "OTEL_"))}
    runtime = tmp_path_factory.mktemp("run")
    return kept | {"PYTHONPATH": str(site), "AXONIZE_RUNTIME_DIR": str(runtime), "AXONIZE_GPU_PROVIDER": "none"}


def axonize(environment, *arguments):
    return subprocess.run(
        [AXONIZE, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_bad_plugins_stop_neither_the_agent_nor_a_good_one(environment, otlp_sink):
    """Spans arrive with the good plugin's attribute; every other plugin's failure has a name, a reason and a count."""
    env = {**environment, "OTEL_EXPORTER_OTLP_ENDPOINT": otlp_sink.url}
    engine = subprocess.Popen(
        [sys.executable, "-c", ENGINE], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert engine.stdout.readline() == "ready\n"
        otlp_sink.wait(lambda sink: sink.spans)
        report = json.loads(axonize(env, "plugins", "--json").stdout)
        text = axonize(env, "plugins")
    finally:
        engine.communicate("\n", timeout=30)
    (span,) = otlp_sink.spans
    assert {a.key: a.value.string_value for a in span.attributes}["tenant"] == "acme"
    (agent,) = report["agents"]
    found = {plugin["name"]: plugin for plugin in agent["plugins"]}
    states = {name: found[name]["state"] for name in PLUGINS}
    assert states == dict.fromkeys(("missing", "exits", "misspelt", "unusable"), "disabled") | dict.fromkeys(
        ("good", "greedy", "short", "slow"), "loaded"
    )
    assert "did you mean 'axonize_requests'" in found["misspelt"]["reason"]
    assert "cannot work here" in found["unusable"]["reason"]
    assert "returned 0 results for 1 events" in found["short"]["reason"]
    assert found["short"]["failures"] == found["slow"]["slow_calls"] == 1
    assert found["slow"]["busy_ms"] >= 120
    assert found["good"]["distribution"] == "dist-good"
    assert found["axonize_core.spans.Spans"]["busy_ms"] < found["slow"]["busy_ms"]
    assert text.returncode == 1
    for line in (f"agent {agent['pid']} at ", "dist-good 1.2", "span_attributes", "!! exits cannot be loaded"):
        assert line in text.stdout, text.stdout


def test_commands_of_plugins_work_and_cannot_break_ours(environment):
    """A plugin's command runs; one that fails to add its own, or takes our name, is named in a line."""
    env = {**environment, "AXONIZE_LOAD_PLUGINS": "good,greedy,short,misspelt"}
    greet = axonize(env, "greet")
    assert (greet.returncode, greet.stdout) == (0, "hello\n")
    assert greet.stderr == "axonize: these plugins do not work: greedy, misspelt, short; see axonize plugins\n"
    assert "AXONIZE_LOAD_PLUGINS" in axonize(env, "env").stdout
    doctor = axonize({**env, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, "doctor")
    assert "all is well" not in doctor.stdout
    assert "misspelt implements 'axonize_reqests', which is no hook" in doctor.stdout


def test_a_name_that_is_not_installed_is_a_problem(environment):
    """A typing error in AXONIZE_LOAD_PLUGINS is said, with what there is."""
    result = axonize({**environment, "AXONIZE_LOAD_PLUGINS": "god"}, "plugins")
    assert result.returncode == 1
    assert "!! god is named in AXONIZE_LOAD_PLUGINS but not installed (installed: exits, good," in result.stdout
    assert axonize({**environment, "AXONIZE_LOAD_PLUGINS": "none"}, "plugins").returncode == 0
