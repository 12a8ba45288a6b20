import os
import signal
import subprocess
import sys

import pytest

from axonize_core.run_command import asking_environment

RUN = [sys.executable, "-c", "from axonize_core.cli import main; main()", "run"]
ASK = "import os; print(os.environ['AXONIZE_ENABLED'], os.environ.get('VLLM_PLUGINS'), os.getpid())"


def run(*command, **env):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AXONIZE_", "VLLM_", "OTEL_"))}
    process = subprocess.Popen(
        [*RUN, *command], env=kept | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out, err = process.communicate(timeout=60)
    return process, out, err


@pytest.mark.parametrize("separator", [("--",), ()])
def test_command_runs_in_the_same_process_with_axonize_asked_for(separator):
    """The pid is the one that was started, so signals and a supervisor reach the command itself."""
    process, out, err = run(*separator, sys.executable, "-c", ASK)
    assert out.split() == ["1", "None", str(process.pid)]
    assert (process.returncode, err) == (0, "")


def test_exit_code_is_that_of_the_command():
    """Whatever it is."""
    assert run("--", sys.executable, "-c", "raise SystemExit(7)")[0].returncode == 7


def test_options_after_the_command_are_its_own():
    """Even --help, which axonize run knows as well."""
    out = run(sys.executable, "-c", "import sys; print(sys.argv[1:])", "--help", "--plugin", "x")[1]
    assert out.strip() == "['--help', '--plugin', 'x']"


def test_list_of_plugins_that_would_hide_us_is_completed():
    """And that is said, in one line."""
    _, out, err = run("--", sys.executable, "-c", ASK, VLLM_PLUGINS="lora_resolver")
    assert out.split()[1] == "lora_resolver,axonize"
    assert err.count("\n") == 1
    assert "VLLM_PLUGINS='lora_resolver' would keep Axonize out" in err


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("axonize", "axonize"), ("a,axonize", "a,axonize"), ("", "axonize"), ("a, axonize", "a, axonize,axonize")],
)
def test_list_of_plugins_is_read_as_vllm_does(given, wanted):
    """It splits at commas and strips nothing, so a name after a space is another one."""
    asking, said = asking_environment({"VLLM_PLUGINS": given})
    assert asking["VLLM_PLUGINS"] == wanted
    assert bool(said) == (given != wanted)


@pytest.mark.parametrize(("command", "code", "says"), [("no-such-command", 127, "there is no command"), ("/", 126, "cannot be run")])  # fmt: skip
def test_command_that_cannot_be_run_is_named(command, code, says):
    """With the exit code that a shell uses."""
    process, out, err = run("--", command)
    assert (process.returncode, out) == (code, "")
    assert says in err
    assert repr(command) in err


def test_command_gets_the_signals_of_a_fresh_process():
    """Python ignores SIGPIPE, and what is ignored stays so over exec."""
    out = run("--", "grep", "SigIgn", "/proc/self/status")[1]
    assert not int(out.split()[1], 16) & 1 << signal.SIGPIPE - 1


def test_switched_off_is_said():
    """The command runs all the same."""
    process, out, err = run("--", sys.executable, "-c", "print('ran')", AXONIZE_DISABLED="true")
    assert (process.returncode, out) == (0, "ran\n")
    assert "switched off, by AXONIZE_DISABLED" in err


def test_help_teaches_with_examples():
    """What to type for a server, and for a script."""
    _, out, _ = run("--help")
    assert "axonize run -- vllm serve" in out
    assert "axonize run -- python" in out
