"""A real tritonserver with our models, where its spans arrive, and what its clients need."""

from __future__ import annotations

import contextlib
import itertools

import pytest

from triton_capture import TritonCapture
from triton_models import write_repository
from triton_server import FORWARD, OTEL, Server
from vllm_server import Surroundings

PLAIN_START = "--disable-auto-complete-config"
FORWARDING = tuple(f"--{kind}-header-forward-pattern={FORWARD}" for kind in ("http", "grpc"))


@pytest.fixture(scope="session")
def triton_serve(tmp_path_factory):
    """``with triton_serve("plain", ...) as server:`` starts a tritonserver with these models, by default all of them.

    ``otel=True`` is Triton's OpenTelemetry mode, its spans going to the capture too; ``prefix`` and ``exit_s`` are as for
    ``Server``. It has ended with the block, and so
    has its agent; a log with a failure is printed.
    """
    count = itertools.count()

    @contextlib.contextmanager
    def start(*models, flags=(PLAIN_START, *FORWARDING), env=None, otel=False, repository=None, **more):
        directory = tmp_path_factory.mktemp(f"triton-{next(count)}")
        repository = repository or write_repository(directory / "models", *models)
        with contextlib.closing(TritonCapture()) as capture:
            surroundings = Surroundings(directory, capture, env)
            tracing = (*OTEL, f"--trace-config=opentelemetry,url={capture.url}/v1/traces") if otel else ()
            server = Server(surroundings, repository, (*flags, *tracing), **more)
            try:
                server.wait_ready()
                yield server
                server.stop()
            except BaseException:
                print(f"log of {' '.join(server.command)}:\n{server.log}")
                raise
            finally:
                server.close()

    return start


@pytest.fixture(scope="session")
def triton(triton_serve):
    """A server with all models that tests share, which name their requests; Triton itself traces nothing."""
    with triton_serve() as server:
        yield server


@pytest.fixture(scope="session")
def triton_otel(triton_serve):
    """The same, with Triton's own spans."""
    with triton_serve(otel=True) as server:
        yield server
