"""``axonize demo``: a collector and a served model side by side, then what the store knows about it."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from axonize_core.errors import AxonizeError
from axonize_server import demo_report, show
from axonize_server.demo_load import DemoError, serve_load
from axonize_server.local import LocalCollector, free_port, port_is_free

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

__all__ = ["DemoOptions", "run"]

_HTTP_PORT, _API_PORT = 4318, 4319
_NEEDED = {"torch": "torch", "transformers": "transformers", "chdb": "'axonize[embedded]'"}


@dataclass(frozen=True)
class DemoOptions:
    """What to run: how many requests, where to keep the data (None: nowhere), whether to stay afterwards."""

    requests: int = 40
    data_dir: Path | None = None
    once: bool = False
    as_json: bool = False


def run(options: DemoOptions) -> None:
    """Serve a load, read it back from the store, and show it; with ``as_json`` stdout gets one line only.

    Raises:
        AxonizeError: a part is missing or failed, or something did not come back from the store.
    """
    _check_parts()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what was started is ended on the way out
    console = show.make_console(stderr=options.as_json)
    with _data_dir(options.data_dir) as data_dir:
        collector = _collector(data_dir, once=options.once or options.as_json)
        console.print(f"collector on {collector.otlp_url}, its API on {collector.client.url}, data in {data_dir}")
        with collector.running():
            figures = _serve_and_show(console, collector, options)
            stays = not options.once and not options.as_json and sys.stdin.isatty()
            if not options.as_json:
                demo_report.print_next(console, collector.client, stays=stays)
            if stays:
                _stay(console, collector)
    if options.as_json:
        print(json.dumps(figures))  # noqa: T201  the command's result


def _serve_and_show(console: Console, collector: LocalCollector, options: DemoOptions) -> dict[str, object]:
    """Return the figures of the load, read back from the store.

    Raises:
        DemoError: something that was served is not in the store.
    """
    run_id = secrets.token_hex(2)
    before = demo_report.store_rows(collector.client.health())
    served = serve_load(console, collector, requests=options.requests, run_id=run_id)
    result = demo_report.read_back(collector.client, run_id, options.requests, before)
    if not options.as_json:
        demo_report.print_result(console, collector.client, result)
    if wrong := demo_report.discrepancies(result, served):
        raise DemoError(f"served, but not stored as served: {'; '.join(wrong)}; logs in {collector.data_dir}")
    return demo_report.figures(result, served)


def _check_parts() -> None:
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise DemoError(f"the demo serves a real model into a real store: pip install {' '.join(missing)}")


@contextmanager
def _data_dir(given: Path | None) -> Iterator[Path]:
    """Yield the given directory, or one that is gone afterwards unless our own error points into it."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.absolute()
        return
    made = Path(tempfile.mkdtemp(prefix="axonize-demo-"))
    try:
        yield made
    except AxonizeError:
        raise
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    shutil.rmtree(made, ignore_errors=True)


def _collector(data_dir: Path, *, once: bool) -> LocalCollector:
    """Return a collector on the default ports where it may stay and they are free, else on any."""
    if not once and port_is_free(_HTTP_PORT) and port_is_free(_API_PORT):
        return LocalCollector(data_dir, http_port=_HTTP_PORT, api_port=_API_PORT)
    return LocalCollector(data_dir, http_port=free_port(), api_port=free_port())


def _stay(console: Console, collector: LocalCollector) -> None:
    """Keep the collector running until Ctrl-C."""
    console.print(f"\nThe collector keeps running on {collector.otlp_url}. Ctrl-C ends it.")
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print()
