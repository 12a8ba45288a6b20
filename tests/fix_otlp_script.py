"""OTLP endpoints that answer as a test says, over HTTP and gRPC, and note every request."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class ScriptedHttp:
    """Gives ``answers`` (status, headers, body) one after the other, then 200; ``requests`` are (path, headers, body)."""

    def __init__(self, tls=None):
        self.answers, self.requests, self.connections = [], [], set()
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                script.connections.add(self.client_address)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                script.requests.append((self.path, dict(self.headers), body))
                status, headers, answer = script.answers.pop(0) if script.answers else (200, {}, b"")
                self.send_response(status)
                for name, value in {"Content-Length": str(len(answer)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if tls is not None:
            self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://localhost:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def bodies(self):
        """Return what was sent, as it was before compression."""
        return [
            gzip.decompress(body) if headers.get("Content-Encoding") == "gzip" else body
            for _, headers, body in self.requests
        ]

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


class ScriptedGrpc:
    """Gives ``answers``: a response's bytes, or (code, details, trailing metadata) to end with; then accepts."""

    def __init__(self):
        import grpc

        self.answers, self.requests = [], []
        script = self

        class Handler(grpc.GenericRpcHandler):
            def service(self, details):
                def export(body, context):
                    script.requests.append((details.method, dict(context.invocation_metadata()), body))
                    answer = script.answers.pop(0) if script.answers else b""
                    if isinstance(answer, tuple):
                        context.set_trailing_metadata(answer[2])
                        context.abort(answer[0], answer[1])
                    return answer

                return grpc.unary_unary_rpc_method_handler(export)

        self.server = grpc.server(ThreadPoolExecutor(2), handlers=(Handler(),))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def close(self):
        self.server.stop(None).wait()


@pytest.fixture
def scripted_http():
    """An HTTP endpoint on loopback."""
    server = ScriptedHttp()
    yield server
    server.close()


@pytest.fixture
def scripted_grpc():
    """A gRPC endpoint on loopback."""
    pytest.importorskip("grpc")
    server = ScriptedGrpc()
    yield server
    server.close()
