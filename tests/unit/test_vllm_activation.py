import argparse
import os
import sys
from collections import Counter
from types import ModuleType

import pytest

from axonize_core.recorder import get_recorder
from axonize_core.settings import get_settings
from axonize_vllm import activation, plugin


@pytest.fixture(autouse=True)
def errors(monkeypatch):
    """What is counted in a test, and not in the next one."""
    monkeypatch.setattr(get_recorder(), "errors", Counter())
    return get_recorder().errors


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """An environment without our switches; what a test sets goes with it."""
    for name in ("AXONIZE_ENABLED", "AXONIZE_DISABLED", "OTEL_SDK_DISABLED", "ENVIRONMENT"):
        monkeypatch.setenv(name, "")  # so that what enable() sets is taken back as well
    monkeypatch.setenv("AXONIZE_OPT_OUT_FILE", str(tmp_path / "none"))
    get_settings.cache_clear()  # another test may have read them
    yield monkeypatch
    get_settings.cache_clear()


@pytest.fixture
def vllm(monkeypatch):
    """vLLM's command line as far as it is used: parsers that strip nothing, and arguments added while they are built."""

    class FlexibleArgumentParser(argparse.ArgumentParser):
        def parse_args(self, args=None, namespace=None):
            args = list(sys.argv[1:] if args is None else args)
            if "--config" in args:  # as vLLM does it: what the file says is put in
                index = args.index("--config")
                args[index : index + 2] = ["--plugin", args[index + 1]]
            return super().parse_args(args, namespace)

    class EngineArgs:
        @staticmethod
        def add_cli_args(parser):
            parser.add_argument("--model")
            return parser

    modules = {name: ModuleType(name) for name in ("vllm", "vllm.utils", "vllm.utils.argparse_utils", "vllm.engine")}
    modules["vllm.engine.arg_utils"] = ModuleType("vllm.engine.arg_utils")
    modules["vllm.utils.argparse_utils"].FlexibleArgumentParser = FlexibleArgumentParser
    modules["vllm.engine.arg_utils"].EngineArgs = EngineArgs
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules


@pytest.fixture
def started(environment, vllm):
    """The calls of what is to be done when the flag was found."""
    calls = []
    activation.install_flag(lambda: calls.append(1))
    return calls


def command_line(vllm):
    """Parsers as vLLM's main() makes them: the outer one first, then, after the plugins, those of subcommands."""
    make = vllm["vllm.utils.argparse_utils"].FlexibleArgumentParser
    outer = make(prog="vllm", exit_on_error=True)
    serve = outer.add_subparsers().add_parser("serve")
    serve.add_argument("model_tag")
    return outer, vllm["vllm.engine.arg_utils"].EngineArgs.add_cli_args(serve)


@pytest.mark.parametrize(
    "line",
    [
        "serve M --plugin axonize",
        "--plugin axonize serve M",
        "serve M --plugin=axonize",
        "--plugin=axonize serve M",
        "serve --plugin axonize M",
        "serve M --config axonize",
        "serve M --plug axonize",
    ],
)
def test_flag_switches_on(line, started, vllm):
    """Wherever it stands, and from a configuration file; it leaves nothing for the engine's arguments."""
    outer, _ = command_line(vllm)
    assert vars(outer.parse_args(line.split())) == {"model_tag": "M", "model": None}
    assert started == [1]
    assert os.environ["AXONIZE_ENABLED"] == "1"
    assert activation.is_enabled()


def test_flag_is_found_on_the_process_own_command_line(started, vllm, monkeypatch):
    """As `vllm serve` does it, without arguments given to the parser."""
    monkeypatch.setattr(sys, "argv", ["vllm", "serve", "M", "--plugin", "axonize"])
    outer, _ = command_line(vllm)
    assert outer.parse_args().model_tag == "M"
    assert started == [1]


def test_without_the_flag_nothing_is_switched_on(started, vllm):
    """Installed but not asked for."""
    outer, _ = command_line(vllm)
    outer.parse_args(["serve", "M"])
    assert not started
    assert not activation.is_enabled()


@pytest.mark.parametrize(
    ("given", "rest"),
    [
        (["--plugin", "axonize,other"], ["--plugin", "other"]),
        (["--plugin=other, axonize"], ["--plugin=other"]),
        (["--plugin", "other"], ["--plugin", "other"]),
        (["--plugin=a, b"], ["--plugin=a, b"]),
        (["--plugin"], ["--plugin"]),
        (["--plugins", "axonize"], ["--plugins", "axonize"]),
        (["--", "--plugin", "axonize"], ["--", "--plugin", "axonize"]),
        (["x", "--plugin", "axonize", "y"], ["x", "y"]),
    ],
)
def test_only_ours_is_taken_out(given, rest):
    """Other plugins stay where they are, and so does what only looks like the flag."""
    assert activation.without_flag(given) == rest


def test_unknown_plugin_is_refused(started, vllm, capsys):
    """A typo is no silent nothing: the parser says what it knows."""
    outer, _ = command_line(vllm)
    with pytest.raises(SystemExit):
        outer.parse_args(["serve", "M", "--plugin", "axonise"])
    assert "no plugin 'axonise'; what it knows is axonize" in capsys.readouterr().err
    assert not started


def test_flag_stands_in_the_help(started, vllm):
    """In its own group, since vLLM's short help lists groups only."""
    _, serve = command_line(vllm)
    text = serve.format_help()
    assert "--plugin NAME" in text
    assert "Axonize:" in text


def test_flag_of_somebody_else_is_left_alone(started, vllm):
    """A parser that has a --plugin keeps its own; ours is still taken out of the arguments."""
    make = vllm["vllm.utils.argparse_utils"].FlexibleArgumentParser
    parser = make()
    parser.add_argument("--plugin")
    vllm["vllm.engine.arg_utils"].EngineArgs.add_cli_args(parser)
    assert parser.parse_args(["--plugin", "axonize,theirs"]).plugin == "theirs"
    assert started == [1]


def test_installing_twice_wraps_once(started, vllm):
    """vLLM may load plugins several times."""
    parser = vllm["vllm.utils.argparse_utils"].FlexibleArgumentParser
    before = parser.parse_args
    activation.install_flag(lambda: None)
    assert parser.parse_args is before


def test_process_without_a_command_line_is_left_alone(environment, monkeypatch):
    """Workers and engine cores parse nothing; nothing of vLLM is imported there."""
    monkeypatch.delitem(sys.modules, "vllm.engine.arg_utils", raising=False)
    before = set(sys.modules)
    activation.install_flag(lambda: None)
    assert not {name for name in set(sys.modules) - before if name.startswith("vllm")}


@pytest.mark.parametrize("switch", ["AXONIZE_DISABLED", "OTEL_SDK_DISABLED"])
def test_off_is_stronger_than_the_flag(switch, environment, caplog):
    """What turns everything off wins, and that is said."""
    environment.setenv(switch, "true")
    calls = []
    activation.enable(lambda: calls.append(1))
    assert not calls
    assert "does nothing, everything is switched off" in caplog.text


def test_switch_that_cannot_be_read_is_said(environment, caplog):
    """AXONIZE_ENABLED=perhaps stops no server."""
    environment.setenv("AXONIZE_ENABLED", "perhaps")
    assert not activation.is_enabled()
    assert "AXONIZE_ENABLED='perhaps'" in caplog.text


def test_settings_read_before_the_flag_are_read_again(environment):
    """They are kept for the process; the flag changes one of them."""
    environment.setenv("ENVIRONMENT", "test")
    assert not get_settings().auto_activation
    activation.enable(lambda: None)
    assert get_settings().auto_activation


class Module:
    """Stands for one of the instrumenting modules."""

    def __init__(self, error=None):
        self.error, self.calls = error, 0

    def instrument(self):
        self.calls += 1
        if self.error:
            raise self.error


@pytest.fixture
def modules(environment, monkeypatch):
    """Our own instrumenting modules, and a self-test that finds everything."""
    found = {name: Module() for name in ("scheduler", "frontend", "worker", "stat_logger")}
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, f"axonize_vllm.{name}", module)
    monkeypatch.setattr("axonize_vllm._supported.missing", lambda name: None)
    monkeypatch.setattr(plugin, "_on", {})
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    sys.modules["vllm"].__version__ = "0.32.0"
    return found


def calls(modules):
    return {name: module.calls for name, module in modules.items() if module.calls}


def test_nothing_is_recorded_until_it_is_asked_for(modules):
    """register() runs wherever the wheel is installed."""
    plugin.register()
    assert calls(modules) == {}
    assert plugin.capabilities() == ""


def test_every_module_is_switched_on_once(modules, environment):
    """In each process, however often vLLM loads its plugins."""
    environment.setenv("AXONIZE_ENABLED", "1")
    plugin.register()
    plugin.register()
    assert calls(modules) == {"scheduler": 1, "frontend": 1, "worker": 1}
    assert plugin.capabilities() == "scheduler,frontend,worker"


def test_missing_scheduler_falls_back_with_one_line(modules, environment, monkeypatch, caplog):
    """The statistics stand in for it, and the line names what is missing and what is used instead."""
    environment.setenv("AXONIZE_ENABLED", "1")
    monkeypatch.setattr(
        "axonize_vllm._supported.missing", lambda name: "no Scheduler.schedule()" if name == "scheduler" else None
    )
    plugin.register()
    assert calls(modules) == {"worker": 1, "stat_logger": 1}  # with the front end as well, requests would count twice
    assert plugin.capabilities() == "stat_logger,worker"
    assert len(caplog.records) == 1
    assert "no Scheduler.schedule()" in caplog.text
    assert "vLLM's own statistics" in caplog.text


def test_processes_of_a_server_leave_the_line_to_it(modules, environment, monkeypatch, caplog, errors):
    """They all find the same; each counts it."""
    environment.setenv("AXONIZE_ENABLED", "1")
    monkeypatch.setattr("axonize_vllm._supported.missing", lambda name: f"no {name}")
    monkeypatch.setattr("multiprocessing.parent_process", object)
    plugin.register()
    assert caplog.records == []
    assert errors["vllm.scheduler.missing"] == 1
    assert plugin.capabilities() == "worker"


def test_module_that_fails_stops_neither_vllm_nor_the_others(modules, environment, caplog, errors):
    """It is named, counted, and not among the capabilities."""
    environment.setenv("AXONIZE_ENABLED", "1")
    modules["frontend"].error = RuntimeError("moved")
    plugin.register()
    assert plugin.capabilities() == "scheduler,worker"
    assert errors == {"vllm.register": 1}
    assert "frontend cannot be switched on: RuntimeError: moved" in caplog.text


def test_flag_that_cannot_be_installed_still_lets_the_variable_work(modules, environment, monkeypatch, caplog):
    """A vLLM that parses elsewhere knows no --plugin, and is recorded all the same."""
    environment.setenv("AXONIZE_ENABLED", "1")
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", ModuleType("arg_utils"))
    plugin.register()
    assert "the flag --plugin axonize cannot be switched on" in caplog.text
    assert plugin.capabilities() == "scheduler,frontend,worker"


def test_unknown_version_is_said(modules, environment, caplog):
    """Its self-test decides what is recorded."""
    environment.setenv("AXONIZE_ENABLED", "1")
    sys.modules["vllm"].__version__ = "0.99.0"
    plugin.register()
    assert "vllm 0.99.0 was not tested" in caplog.text
    assert plugin.capabilities() == "scheduler,frontend,worker"


def test_process_that_only_looks_at_a_model_is_left_alone(modules, environment, monkeypatch):
    """vLLM starts one to learn a model's abilities; it serves nothing and should be quick."""
    environment.setenv("AXONIZE_ENABLED", "1")
    main = ModuleType("__main__")
    main.__spec__ = type("Spec", (), {"name": "vllm.model_executor.models.registry"})
    monkeypatch.setitem(sys.modules, "__main__", main)
    plugin.register()
    assert calls(modules) == {}
