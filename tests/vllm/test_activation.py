"""How Axonize is asked for, with vLLM's own command line; and that it does nothing until it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from vllm_server import OURS, QUIET

PARSE = """
    import contextlib, io, json, os, sys
    from vllm.entrypoints.cli import main, serve
    from axonize_vllm import plugin

    def cmd(args):
        found.update(model=args.model_tag, left=hasattr(args, "plugin"))

    serve.ServeSubcommand.cmd = staticmethod(cmd)
    serve.ServeSubcommand.validate = lambda self, args: None
    for line in json.loads(sys.argv[1]):
        os.environ.pop("AXONIZE_ENABLED", None)
        plugin._on.clear()
        sys.argv[:], found, said = ["vllm", *line], {}, io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main.main()
        found.update(asked=os.environ.get("AXONIZE_ENABLED"), on=plugin.capabilities(), said=said.getvalue())
        print("facts: " + json.dumps(found), flush=True)
"""

CLASSES = """
    import json, os, sys, threading
    from vllm import plugins
    from vllm.config.scheduler import SchedulerConfig
    from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler, Scheduler
    from vllm.v1.engine.async_llm import AsyncLLM, OutputProcessor
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.metrics.loggers import StatLoggerBase, StatLoggerManager, load_stat_logger_plugin_factories
    from vllm.v1.worker.cpu_worker import CPUWorker
    from vllm.v1.worker.gpu_worker import Worker
    from vllm.v1.worker.worker_base import WorkerBase, WorkerWrapperBase

    classes = [
        SchedulerConfig, AsyncEngineArgs, EngineArgs, FlexibleArgumentParser, AsyncScheduler, Scheduler, AsyncLLM,
        OutputProcessor, EngineCore, LLMEngine, StatLoggerBase, StatLoggerManager, CPUWorker, Worker, WorkerBase,
        WorkerWrapperBase,
    ]

    def members():
        return {f"{owner.__name__}.{name}": value for owner in classes for name, value in vars(owner).items()}

    before, modules, threads = members(), set(sys.modules), set(threading.enumerate())
    plugins.load_general_plugins()
    after = members()
    print("facts: " + json.dumps({
        "changed": sorted(name for name in before.keys() | after.keys() if before.get(name) is not after.get(name)),
        "imported": sorted(name for name in set(sys.modules) - modules if not name.startswith("vllm.")),
        "threads": len(set(threading.enumerate()) - threads),
        "loggers": len(load_stat_logger_plugin_factories()),
    }))
"""


def facts(program, *arguments, **env):
    """Run a program in a process of its own, and return what it says."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    done = subprocess.run(command, env=kept | QUIET | env, capture_output=True, text=True, timeout=180, check=False)
    said = [line.removeprefix("facts: ") for line in done.stdout.splitlines() if line.startswith("facts: ")]
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in said]


@pytest.fixture(scope="module")
def parsed(tmp_path_factory):
    """What vLLM's command line made of each way to write it; nothing is served."""
    config = tmp_path_factory.mktemp("config") / "serve.yaml"
    config.write_text("port: 8123\nplugin: axonize\n")
    lines = {
        "after": ["serve", "M", "--plugin", "axonize"],
        "before": ["--plugin", "axonize", "serve", "M"],
        "equals": ["serve", "M", "--plugin=axonize", "--port", "8123"],
        "config": ["serve", "M", "--config", str(config)],
        "typo": ["serve", "M", "--plugin", "axonise"],
        "none": ["serve", "M"],
        "help": ["serve", "--help"],
        "found": ["serve", "--help=axonize"],
    }
    return dict(zip(lines, facts(PARSE, json.dumps(list(lines.values()))), strict=True))


@pytest.mark.parametrize("way", ["after", "before", "equals", "config"])
def test_flag_switches_on_what_is_recorded(way, parsed):
    """Wherever it stands; it is for the children as well, and leaves nothing for the engine's arguments."""
    found = parsed[way]
    assert (found["model"], found["left"], found["asked"]) == ("M", False, "1")
    assert found["on"] == "scheduler,frontend,worker"


def test_nothing_is_recorded_without_it(parsed):
    """The same command line without the flag."""
    assert (parsed["none"]["model"], parsed["none"]["asked"], parsed["none"]["on"]) == ("M", None, "")


def test_plugin_that_nobody_knows_is_refused(parsed):
    """Rather than serving without what was asked for."""
    assert "model" not in parsed["typo"]
    assert "no plugin 'axonise'; what it knows is axonize" in parsed["typo"]["said"]


def test_flag_stands_in_the_help(parsed):
    """Among the groups, and by name."""
    assert "Axonize" in parsed["help"]["said"]
    assert "`--plugin axonize`" in parsed["help"]["said"]
    assert "--plugin NAME" in parsed["found"]["said"]


def test_until_asked_for_only_the_command_line_is_touched():
    """No other function of vLLM is replaced, nothing is imported but what reads a flag, and no thread runs."""
    (found,) = facts(CLASSES)
    assert found["changed"] == ["EngineArgs.add_cli_args", "FlexibleArgumentParser.parse_args"]
    ours = [name for name in found["imported"] if name.startswith("axonize")]
    assert {"axonize_vllm.plugin", "axonize_vllm.activation"} <= set(ours)
    assert not {"axonize_core.recorder", "axonize_vllm.scheduler", "axonize_vllm._supported"} & set(ours)
    assert not [name for name in found["imported"] if name.partition(".")[0] in ("opentelemetry", "pluggy", "pynvml")]
    assert (found["threads"], found["loggers"]) == (0, 0)


def test_variable_asks_for_it_as_well():
    """As in processes that a server starts; a thread runs only once there is something to ship."""
    (found,) = facts(CLASSES, AXONIZE_ENABLED="1")
    assert {"SchedulerConfig.get_scheduler_cls", "WorkerWrapperBase.init_device"} <= set(found["changed"])
    assert (found["threads"], found["loggers"]) == (0, 0)


def test_list_of_plugins_without_us_keeps_everything_out():
    """vLLM loads nothing of ours then, whatever is asked for."""
    (found,) = facts(CLASSES, AXONIZE_ENABLED="1", VLLM_PLUGINS="lora_filesystem_resolver")
    assert found["changed"] == []
    assert not [name for name in found["imported"] if name.startswith("axonize")]
