"""Notebooks: the agent inside the process, an event loop in the main thread, and records seen between two cells."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from fix_place import PRELUDE

INLINE = {"AXONIZE_AGENT": "inline"}
KERNEL = """
import sys
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel(kernel_name="python3")
try:
    for cell in sys.stdin.read().split("# %%"):
        client.execute_interactive(cell, timeout=60, allow_stdin=False)
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=False)
"""


def test_an_inline_agent_needs_no_directory_and_no_process(place, tmp_path):
    """Everything happens in the notebook's process: nothing is made, nobody is started, spans arrive between cells."""
    program = place.start("print(rec.pid, flush=True)\nfor cell in sys.stdin: exec(cell)", env=INLINE, cwd=tmp_path)
    program.stdout.readline()
    program.stdin.write("request('cell-1')\n")
    program.stdin.flush()
    place.arrived("cell-1")
    assert place.agents() == []
    assert not place.runtime.exists()
    stdout, stderr = program.communicate("request('cell-2'); report()\n", timeout=30)
    assert (json.loads(stdout)["lost"], stderr) == (0, "")
    place.arrived("cell-2")


def test_a_host_with_an_event_loop_in_its_main_thread(place):
    """Tasks record while the loop runs; the loop is not held up by more than one start of an agent."""
    code = """
        import asyncio
        async def serve(number):
            request(f'task-{number}')
            await asyncio.sleep(0.01)
        async def main():
            worst, seen = 0.0, time.monotonic()
            tasks = [asyncio.create_task(serve(n)) for n in range(5)]
            await asyncio.gather(*tasks)
            for _ in range(100):
                seen = time.monotonic()
                await asyncio.sleep(0.01)
                worst = max(worst, time.monotonic() - seen - 0.01)
            assert await asyncio.to_thread(rec.flush, 15)
            return worst
        worst_s = asyncio.run(main())
        print(json.dumps({**facts(), "worst_s": worst_s}))
    """
    facts = place.run(code, env=INLINE)
    assert facts["lost"] == 0
    assert facts["worst_s"] < 2.0, "ticks of the loop after the first emit"
    for number in range(5):
        place.arrived(f"task-{number}")


def test_doctor_says_that_the_agent_is_inside(place):
    """There is no socket to ask, and that is as it should be."""
    (finding,) = place.doctor(env=INLINE)
    assert finding["level"] == "note"
    assert "inside each instrumented process" in finding["text"]


@pytest.mark.parametrize("agent", ["inline", "auto"])
def test_a_jupyter_kernel(place, agent):
    """A real kernel runs cells that record; its interrupts, restarts and threads are its own."""
    if importlib.util.find_spec("ipykernel") is None:
        pytest.skip("ipykernel is not installed: pip install --group hosts")
    cells = [PRELUDE, f"request('kernel-{agent}')", f"request('kernel-{agent}-2')", "assert rec.close(15)"]
    done = subprocess.run(
        [sys.executable, "-c", KERNEL],
        input="# %%".join(cells),
        env=place.env(AXONIZE_AGENT=agent),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    place.arrived(f"kernel-{agent}")
    place.arrived(f"kernel-{agent}-2")
