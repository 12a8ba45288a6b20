"""What may go wrong between the writer and a ClickHouse server, one exchange at a time; for `clickhouse_front`."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING

from clickhouse_front import Answer

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from clickhouse_front import Exchange

__all__ = [
    "cut_answer",
    "half_rows",
    "held",
    "late_exception",
    "lost_answer",
    "proxy_page",
    "refused",
    "reset_in_body",
]

_TAG = "abcdefghijklmnop"
_FAILED = "Code: 241. DB::Exception: Memory limit (total) exceeded: would use 9.00 GiB. (MEMORY_LIMIT_EXCEEDED)"


def refused(status: int, code: int | None = None) -> Callable[[Exchange], None]:
    """Nothing is done; an error of ClickHouse has a code, one of a proxy has none."""

    def play(exchange: Exchange) -> None:
        exchange.read()
        headers = {} if code is None else {"X-ClickHouse-Exception-Code": str(code)}
        exchange.send(Answer(status, b"broken on purpose", headers))

    return play


def late_exception(code: int) -> Callable[[Exchange], None]:
    """Progress was told after a 200, then it failed: the code comes in a header that stands behind the status."""

    def play(exchange: Exchange) -> None:
        exchange.read()
        progress = {"X-ClickHouse-Progress": '{"read_rows":"1","written_rows":"1"}'}
        exchange.send(Answer(200, _FAILED.encode(), {**progress, "X-ClickHouse-Exception-Code": str(code)}))

    return play


def proxy_page(exchange: Exchange) -> None:
    """Nothing is done, and somebody who is no ClickHouse says that all is well."""
    exchange.read()
    page = b"<!DOCTYPE html><html><head><title>Welcome</title></head><body>" + b"It works! " * 200 + b"</body></html>"
    exchange.send(Answer(200, page, {"Content-Type": "text/html"}))


def lost_answer(exchange: Exchange) -> None:
    """It is done, and no answer comes."""
    exchange.work(exchange.read())
    exchange.hang_up()


def cut_answer(exchange: Exchange) -> None:
    """It is done, and the connection ends in the middle of the answer's headers."""
    exchange.work(exchange.read())
    exchange.wfile.write(b'HTTP/1.1 200 OK\r\nX-ClickHouse-Progress: {"read_rows":"1"}\r\n')
    exchange.hang_up()


def reset_in_body(exchange: Exchange) -> None:
    """Some of the body is taken, then the connection is reset."""
    exchange.rfile.read(1000)
    exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    exchange.connection.close()
    exchange.hang_up()


def held(until: threading.Event) -> Callable[[Exchange], None]:
    """Nothing is said until the event; then it is done, for whoever still listens."""

    def play(exchange: Exchange) -> None:
        body = exchange.read()
        until.wait(60)
        exchange.send(exchange.work(body))

    return play


def half_rows(how: str) -> Callable[[Exchange], None]:
    """A query's first block comes, then it fails: `tagged` as new servers say it, `text` as old ones, or `cut`."""
    ends = {
        "tagged": f"\r\n__exception__\r\n{_TAG}\r\n{_FAILED}\n{len(_FAILED)} {_TAG}\r\n__exception__\r\n",
        "text": _FAILED,
        "cut": "",
    }

    def play(exchange: Exchange) -> None:
        _, block, headers = exchange.work(exchange.read())
        if how == "tagged":
            headers = {**headers, "X-ClickHouse-Exception-Tag": _TAG}
        exchange.send_response(200)
        for name, value in {**headers, "Transfer-Encoding": "chunked"}.items():
            exchange.send_header(name, value)
        exchange.end_headers()
        for chunk in (block, ends[how].encode()):
            if chunk:
                exchange.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        if how == "text":
            exchange.wfile.write(b"0\r\n\r\n")
        exchange.hang_up()

    return play
