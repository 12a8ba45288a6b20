"""What the commands ask, print and say when something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import NamedTuple

import pytest

from axonize_core.cli import main
from axonize_server import plugin
from axonize_server.client import ApiClient, ApiUnreachableError
from fix_api import api_batch, api_request, api_trace

NOWHERE = "http://127.0.0.1:9"


class Outcome(NamedTuple):
    exit_code: int
    output: str


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``axonize`` in this process; the output is stdout and stderr."""
    monkeypatch.delenv("AXONIZE_API_URL", raising=False)

    def run_it(*args):
        monkeypatch.setattr(sys, "argv", ["axonize", *args])
        with pytest.raises(SystemExit) as exit_info:
            main()
        captured = capsys.readouterr()
        return Outcome(exit_info.value.code or 0, captured.out + captured.err)

    return run_it


def test_requests_passes_its_filters_on(run, canned_api):
    """Only what was asked for stands in the query string."""
    canned_api.answers["/api/v1/requests"] = 200, {"requests": [api_request()]}
    result = run("requests", "--api", canned_api.url, "--limit", "3", "--status", "error", "--model", "m")
    assert result.exit_code == 0
    assert "req-0000" in result.output
    asked = {"limit": "3", "since": "24h", "status": "error", "model": "m"}
    assert canned_api.asked == [("/api/v1/requests", asked)]


def test_json_is_what_the_api_gave(run, canned_api):
    """``--json`` adds and loses nothing."""
    canned_api.answers["/api/v1/requests"] = 200, {"requests": [api_request()]}
    result = run("requests", "--json", "--api", canned_api.url)
    assert json.loads(result.output) == {"requests": [api_request()]}


def test_the_api_address_comes_from_the_environment(run, canned_api, monkeypatch):
    """``AXONIZE_API_URL`` saves the flag."""
    monkeypatch.setenv("AXONIZE_API_URL", canned_api.url + "/")
    canned_api.answers["/api/v1/requests"] = 200, {"requests": []}
    assert run("requests").output == "no requests\n"


def test_a_full_trace_id_is_asked_for_directly(run, canned_api):
    """No search when there is nothing to search for."""
    trace = api_trace()
    path = f"/api/v1/traces/{trace['trace_id']}"
    canned_api.answers[path] = 200, trace
    result = run("trace", trace["trace_id"], "--api", canned_api.url)
    assert "├─ prefill" in result.output
    assert canned_api.asked == [(path, {})]


@pytest.mark.parametrize("wanted", ["0001bf92", "0001BF92", "req-0001"])
def test_the_beginning_of_a_trace_id_or_a_request_id_suffices(run, canned_api, wanted):
    """What the table shows can be typed back."""
    trace_id = api_request(1)["trace_id"]
    canned_api.answers["/api/v1/requests"] = 200, {"requests": [api_request(n) for n in range(3)]}
    canned_api.answers[f"/api/v1/traces/{trace_id}"] = 200, api_trace()
    assert run("trace", wanted, "--json", "--api", canned_api.url).exit_code == 0
    assert canned_api.asked[-1][0].endswith(trace_id)


@pytest.mark.parametrize(
    ("wanted", "said"), [("0", "fits 7 traces: 0000"), ("xyz", "no recent trace or request 'xyz'")]
)
def test_none_or_several_traces_are_an_error(run, canned_api, wanted, said):
    """Nothing is guessed."""
    canned_api.answers["/api/v1/requests"] = 200, {"requests": [api_request(n) for n in range(7)]}
    result = run("trace", wanted, "--api", canned_api.url)
    assert result.exit_code == 2
    assert said in result.output


def test_batches_and_their_members(run, canned_api):
    """The list names steps; ``--members`` names who shared them."""
    canned_api.answers["/api/v1/batches"] = 200, {"batches": [api_batch(41), api_batch(40)]}
    assert "req-0001" not in run("batches", "--api", canned_api.url).output
    members = run("batches", "--members", "--api", canned_api.url).output
    assert members.count("req-0001") == 2
    assert (
        json.loads(run("batches", "--json", "--members", "--api", canned_api.url).output)["batches"][0]["step_seq"]
        == 41
    )


def test_a_request_number_needs_its_process(run):
    """Numbers repeat between processes, so one alone would mix them."""
    result = run("batches", "--request-seq", "4")
    assert result.exit_code == 2
    assert "--instance-id" in result.output


def test_nobody_listening_is_one_line_with_the_next_step(run):
    """The address and the command that starts a collector are named."""
    result = run("requests", "--api", NOWHERE)
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert NOWHERE in result.output
    assert "axonize collector" in result.output


@pytest.mark.parametrize("answer", [b"<html>", b"[]"])
def test_a_stranger_at_the_address_is_recognised(run, canned_api, answer):
    """Something else on the port is not taken for a collector."""
    canned_api.answers["/api/v1/requests"] = 200, answer
    assert "is no Axonize collector" in run("requests", "--api", canned_api.url).output


def test_an_error_of_the_api_is_shown_as_it_says(run, canned_api):
    """The message is the API's own; a bare status line where there is none."""
    canned_api.answers["/api/v1/requests"] = (
        400,
        {"error": {"code": "bad_since", "message": "since 'x' is no duration"}},
    )
    canned_api.answers["/api/v1/batches"] = 500, b"oops"
    assert run("requests", "--api", canned_api.url).output == "axonize: since 'x' is no duration\n"
    assert "500 Internal Server Error" in run("batches", "--api", canned_api.url).output


def test_an_address_without_a_scheme_is_refused():
    """urllib would read a file or fail in its own words."""
    with pytest.raises(ApiUnreachableError, match="no scheme"):
        ApiClient("localhost:4319")


def test_readiness_is_a_plain_answer(canned_api):
    """Not ready and not there are both no."""
    client = ApiClient(canned_api.url)
    assert not client.ready()
    canned_api.answers["/readyz"] = 200, {}
    assert client.ready()
    assert not ApiClient(NOWHERE).ready()


@pytest.mark.parametrize("command", ["trace", "requests"])
def test_without_the_extra_one_line_says_what_to_install(command):
    """A missing dependency is no traceback, and plain ``axonize`` still lists the commands."""
    bare = "import sys; sys.modules['rich'] = sys.modules['pydantic'] = None\nfrom axonize_core.cli import main; main()"
    python = [sys.executable, "-c", bare]
    result = subprocess.run([*python, command], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "pip install 'axonize[server,embedded]'" in result.stderr
    assert command in subprocess.run([*python, "--help"], capture_output=True, text=True, check=True).stdout


def test_our_own_missing_module_is_not_taken_for_a_missing_extra(run, monkeypatch):
    """A broken installation is shown as such."""
    monkeypatch.setitem(sys.modules, "axonize_server.commands", None)
    with pytest.raises(ModuleNotFoundError):
        run("requests")


def test_every_listed_command_exists_and_explains_itself(run):
    """The list shown without loading anything agrees with the commands."""
    listed = run("--help").output
    for name, (_, summary) in plugin.COMMANDS.items():
        assert f"{name}  " in listed
        explained = run(name, "--help")
        assert explained.exit_code == 0, explained.output
        assert summary.rstrip(".") in " ".join(explained.output.split())
