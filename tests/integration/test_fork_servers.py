"""Servers that fork: each worker records on its own, and nobody waits for anybody."""

from __future__ import annotations

from fix_place import PRELUDE


def test_workers_of_a_preloading_server_record_each_on_their_own(place):
    """Instrumented before the fork, as gunicorn --preload does: no thread runs in the parent, no worker is mistaken."""
    code = """
        import threading
        rec.source("transformers", "", "tiny", "hf", ("cpu", 0, None))
        workers = []
        for number in range(3):
            assert threading.active_count() == 1
            if (pid := os.fork()) == 0:
                request(f'preload-{number}'); os._exit(0 if rec.close(15) else 1)
            workers.append(pid)
        assert {os.waitpid(pid, 0)[1] for pid in workers} == {0}
        assert rec.dropped_total() == 0 and not rec.errors
    """
    assert place.run(code, env={"PYTHONWARNINGS": "error"}) is None
    for number in range(3):
        place.arrived(f"preload-{number}")
    instances = {
        resource["service.instance.id"]
        for span, resource in zip(place.sink.spans, place.sink.resources, strict=True)
        if span.name == "request"
    }
    assert len(instances) == 3


def test_a_start_leaves_no_child_behind(place):
    """The process that started the agent is taken off the process table when the agent is there."""
    code = """
        request('childless'); assert rec.flush(15)
        deadline = time.monotonic() + 10
        children = lambda: open(f'/proc/self/task/{os.getpid()}/children').read().split()
        while (left := children()) and time.monotonic() < deadline: time.sleep(0.05)
        assert not left
        report()
    """
    assert place.run(code)["lost"] == 0
    place.arrived("childless")


def test_a_fork_while_the_agent_is_still_starting(place):
    """Parent and child each arrive, whatever the fork copied of the start under way."""
    code = """
        import warnings
        warnings.simplefilter('ignore', DeprecationWarning)  # of Python 3.12 and later: a fork with threads
        request('forking-parent'); time.sleep(0.12)
        if (pid := os.fork()) == 0:
            request('forking-child'); os._exit(0 if rec.close(15) else 1)
        assert os.waitpid(pid, 0)[1] == 0
        report()
    """
    assert place.run(code)["lost"] == 0
    place.arrived("forking-parent")
    place.arrived("forking-child")


def test_a_worker_forks_again(place):
    """A data loader's worker, or a worker that daemonizes: each generation begins anew."""
    code = """
        for generation in range(3):
            if (pid := os.fork()) != 0:
                assert os.waitpid(pid, 0)[1] == 0
                os._exit(0 if rec.close(15) else 1)
            request(f'generation-{generation}'); assert rec.close(15)
    """
    assert place.run(code, env={"PYTHONWARNINGS": "error"}) is None
    for generation in range(3):
        place.arrived(f"generation-{generation}")


def test_multiprocessing_with_a_fork_server(place, tmp_path):
    """What multiprocessing does on Linux from Python 3.14 on; the server has our modules loaded already."""
    (tmp_path / "served.py").write_text(PRELUDE + "\ndef serve(name):\n    request(name); assert rec.close(15)\n")
    code = """
        import multiprocessing
        sys.path.insert(0, sys.argv[1])
        import served
        context = multiprocessing.get_context('forkserver')
        context.set_forkserver_preload(['served'])
        workers = [context.Process(target=served.serve, args=(f'forkserver-{n}',)) for n in range(2)]
        for worker in workers: worker.start()
        for worker in workers: worker.join(30)
        assert [worker.exitcode for worker in workers] == [0, 0]
    """
    assert place.run(code, arguments=[tmp_path]) is None
    place.arrived("forkserver-0")
    place.arrived("forkserver-1")


def test_a_killed_worker_takes_nobody_with_it(place):
    """SIGKILL of one worker: its sibling and the next worker go on, with the same agent."""
    code = """
        import signal
        def work(name, then):
            if (pid := os.fork()) == 0:
                request(name); assert rec.flush(15); then(); os._exit(0 if rec.close(15) else 1)
            return pid
        killed = work('killed', lambda: os.kill(os.getpid(), signal.SIGKILL))
        sibling = work('sibling', lambda: time.sleep(0.5))
        assert os.waitpid(killed, 0)[1] == signal.SIGKILL
        assert os.waitpid(work('replacement', lambda: None), 0)[1] == 0
        assert os.waitpid(sibling, 0)[1] == 0
    """
    assert place.run(code) is None
    for name in ("killed", "sibling", "replacement"):
        place.arrived(name)


def test_an_inline_agent_does_not_survive_a_fork_and_need_not(place):
    """Each process has its own; the parent's goes on after the child is gone."""
    code = """
        import warnings
        warnings.simplefilter('ignore', DeprecationWarning)  # of Python 3.12 and later: a fork with threads
        request('inline-parent'); assert rec.flush(15)
        if (pid := os.fork()) == 0:
            request('inline-child'); os._exit(0 if rec.close(15) else 1)
        assert os.waitpid(pid, 0)[1] == 0
        request('inline-parent-again'); report()
    """
    assert place.run(code, env={"AXONIZE_AGENT": "inline"})["lost"] == 0
    for name in ("inline-parent", "inline-child", "inline-parent-again"):
        place.arrived(name)
