"""ClickHouse's HTTP interface over the engine in this process, as far as clickhouse-connect needs it.

It stands in for a server: statements in URL or body, settings and parameters, compressed and chunked bodies,
inserts of data and INSERT … SELECT … FROM input(…), errors with their codes. It cannot stand in for a
server's scheduling, authentication or replication. What may go wrong on the way is in `clickhouse_faults`.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import chdb
import lz4.frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Answer", "Exchange", "Front", "Received"]

_FORMAT = re.compile(rb"\bFORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
_DATA = re.compile(rb"^(INSERT\s.*?\bFORMAT\s+(\w+))[ \t]*\r?\n", re.IGNORECASE | re.DOTALL)
_INPUT = re.compile(rb"\binput\(")
_OURS = {
    "query",
    "database",
    "session_id",
    "session_timeout",
    "session_check",
    "query_id",
    "client_protocol_version",
    "compress",
    "decompress",
    "enable_http_compression",
    "wait_end_of_query",
    "send_progress_in_http_headers",
    "http_headers_progress_interval_ms",
    "role",
    "quota_key",
    "buffer_size",
    "default_format",
}


class Received(NamedTuple):
    """The body of an insert as it came."""

    encoding: str
    wire_bytes: int
    data: bytes


class Answer(NamedTuple):
    """What is sent back."""

    status: int
    data: bytes
    headers: dict[str, str]


class Front:
    """A server on 127.0.0.1 and a free port, for the engine at a directory; used as a context manager."""

    def __init__(self, path: str, exchange: type[Exchange] | None = None) -> None:
        self.path = path
        self._exchange = exchange or Exchange
        self.away = False
        """Whether to answer 503 to everything."""
        self.faults: Iterator[Callable[[Exchange], None] | None] = iter(())
        """What goes wrong with the next statements that are no inserts; None is nothing."""
        self.insert_faults: Iterator[Callable[[Exchange], None] | None] = iter(())
        """What goes wrong with the next inserts of segments."""
        self.statements: list[bytes] = []
        """What was asked, without data."""
        self.inserts: list[Received] = []
        """The segments that came whole."""

    def __enter__(self) -> Self:
        handler = type("Handler", (self._exchange,), {"front": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that hang up; anything else is worth a traceback."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class Exchange(BaseHTTPRequestHandler):
    """One connection; a fault takes one exchange on it over, and has `read`, `work`, `send` and `hang_up` for that."""

    protocol_version = "HTTP/1.1"
    timeout = 5
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client's acknowledgement of its headers
    front: Front

    def setup(self) -> None:
        """Give each connection, which has a thread of its own, a connection to the engine."""
        super().setup()
        self._connection = chdb.connect(self.front.path)

    def finish(self) -> None:
        """Let the engine go."""
        self._connection.close()
        super().finish()

    def do_GET(self) -> None:
        """Answer /ping and queries in the URL."""
        if urlsplit(self.path).path == "/ping":
            self.send(Answer(200, b"Ok.\n", {}))
        else:
            self.do_POST()

    def do_POST(self) -> None:
        """Run one statement, unless something is to go wrong with it."""
        if self.front.away:
            self.read()
            self.send(Answer(503, b"broken on purpose", {}))
        elif fault := next(self.front.insert_faults if self._chunked() else self.front.faults, None):
            fault(self)
        else:
            self.send(self.work(self.read()))

    def work(self, body: bytes) -> Answer:
        """Do what is asked."""
        options = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        try:
            data, name, rows = self._run(options, body)
        except Exception as e:
            text = str(e)
            code = re.search(r"Code: (\d+)", text)
            return Answer(500, text.encode(), {"X-ClickHouse-Exception-Code": code[1] if code else "1002"})
        told = {"read_rows": str(rows), "read_bytes": "0", "written_rows": "0" if data else str(rows)}
        headers = {"X-ClickHouse-Format": name, "X-ClickHouse-Timezone": "UTC"}
        return Answer(200, data, {**headers, "X-ClickHouse-Summary": json.dumps(told)})

    def _run(self, options: dict[str, str], body: bytes) -> tuple[bytes, str, int]:
        asked = options.get("query", "").encode()
        whole = asked + b"\n" + body if asked else body
        insert = _DATA.match(whole)
        connection = self._connection
        changed = [name for name in options if name not in _OURS and not name.startswith("param_")]
        try:
            if "database" in options and options["database"] != "__default__":
                connection.query(f"USE `{options['database']}`")
            for name in changed:
                connection.query(f"SET {name} = {_quote(options[name])}")
            if insert:
                self.front.statements.append(insert[1])
                return _insert(connection, insert[1], insert[2], whole[insert.end() :])
            self.front.statements.append(whole)
            parameters = {name[6:]: value for name, value in options.items() if name.startswith("param_")}
            name = found[1].decode() if (found := _FORMAT.search(whole)) else "TabSeparated"
            result = connection.query(whole.decode(), name, params=parameters)
            return result.bytes() or b"", name, result.rows_read()
        finally:
            for name in changed:
                connection.query(f"SET {name} = DEFAULT")

    def _chunked(self) -> bool:
        """Say whether this is an insert of a segment: nothing else comes in pieces."""
        return self.headers.get("Transfer-Encoding", "").lower() == "chunked"

    def read(self) -> bytes:
        """Give the whole body, inflated."""
        encoding = self.headers.get("Content-Encoding", "")
        if not self._chunked():
            return _inflate(self.rfile.read(int(self.headers.get("Content-Length") or 0)), encoding)
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        data = _inflate(body, encoding)
        self.front.inserts.append(Received(encoding, len(body), data))
        return data

    def send(self, answer: Answer) -> None:
        """Answer, compressed if that is asked for."""
        status, data, headers = answer
        accepted = self.headers.get("Accept-Encoding", "")
        if "enable_http_compression=1" in self.path and "gzip" in accepted and status == 200:
            data, headers = gzip.compress(data), {**headers, "Content-Encoding": "gzip"}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def hang_up(self) -> None:
        """End the connection after what was sent."""
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


def _insert(connection: chdb.state.Connection, statement: bytes, name: bytes, data: bytes) -> tuple[bytes, str, int]:
    """Hand the data over as a file: INSERT … FORMAT X by FROM INFILE, input(…) by file(…)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "data")
        file.write_bytes(data)
        path = _quote(str(file))
        if _INPUT.search(statement):
            sql = _INPUT.sub(f"file({path}, {name.decode()}, ".encode(), statement)
            sql = _FORMAT.sub(b"", sql)
        else:
            sql = _FORMAT.sub(f"FROM INFILE {path} FORMAT {name.decode()}".encode(), statement)
        rows = connection.query(sql.decode()).rows_read()
    return b"", "TabSeparated", rows


def _inflate(body: bytes, encoding: str) -> bytes:
    """Inflate all of the concatenated frames, not just the first."""
    if not encoding:
        return body
    if encoding == "gzip":
        return gzip.decompress(body)
    out = b""
    while body:
        frame = lz4.frame.LZ4FrameDecompressor()
        out += frame.decompress(body)
        body = frame.unused_data or b""
    return out


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
