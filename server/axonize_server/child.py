"""The entry of a collector's child process: ``python -m axonize_server.child receiver|writer``.

The settings come as one line of JSON on standard input, which the supervisor holds open for its lifetime:
its end, however it came, is the child's SIGTERM. So nothing is orphaned, not even by ``kill -9``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time

import structlog

from axonize_core.errors import ConfigurationError
from axonize_server.logs import configure_logs
from axonize_server.process import REFUSED_TO_START
from axonize_server.settings import Settings, load_settings
from axonize_server.stats import write_writer

__all__ = ["main"]

_GRACE_S = 5.0


def main() -> None:
    """Run the role named by the first argument until SIGTERM."""
    configure_logs()
    role, *arguments = sys.argv[1:]
    line = sys.stdin.buffer.readline()
    try:
        settings = load_settings(**json.loads(line))
        parent = threading.Thread(target=_end_with_parent, args=(settings.drain_s,), name="axonize-parent", daemon=True)
        parent.start()
        if role == "receiver":
            _receiver(settings, *map(int, arguments))
        else:
            _writer(settings)
    except ConfigurationError as error:
        structlog.get_logger("axonize.child").error("start_refused", role=role, error=str(error))
        raise SystemExit(REFUSED_TO_START) from None


def _writer(settings: Settings) -> None:
    from axonize_server import writer  # noqa: PLC0415 - ClickHouse is the writer's alone

    writer.run(settings, lambda api_port: write_writer(settings.data_dir, api_port))


def _receiver(settings: Settings, worker: int, listener_fd: int) -> None:
    from axonize_server import receiver  # noqa: PLC0415 - the writer does without the transports

    receiver.run(settings, socket.socket(fileno=listener_fd), worker=worker)


def _end_with_parent(drain_s: float) -> None:
    """A daemon thread: wait for the end of standard input, then stop, at the latest after the drain."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(drain_s + _GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
