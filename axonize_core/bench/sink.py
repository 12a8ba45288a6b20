"""An OTLP/HTTP endpoint that takes everything and keeps nothing: ``python -m axonize_core.bench.sink``.

Prints its port, and ends when its standard input does.
"""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from axonize_core.cpus import give_way

__all__ = ["main"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Read the body and thank for it."""
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def main() -> None:
    """Serve until standard input ends, after all others: a collector has a machine of its own."""
    give_way()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    print(server.server_port, flush=True)  # noqa: T201 - stdout is the interface
    sys.stdin.read()


if __name__ == "__main__":
    main()
