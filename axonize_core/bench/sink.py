"""An OTLP/HTTP endpoint that takes everything and keeps nothing: ``python -m axonize_core.bench.sink``.

Prints its port, and ends when its standard input does. It stands for a collector on another machine, so it takes as
little of this one as it can: bodies are thrown away in the kernel, and of a request only its length is looked for.
"""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading

from axonize_core.cpus import give_way

__all__ = ["main"]

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_END = b"\r\n\r\n"
_MOST_HEAD_BYTES = 65_536
_AT_ONCE_BYTES = 262_144
_THANKS = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


def _serve(connection: socket.socket) -> None:
    """Thank for one request after the other, until the client leaves."""
    head, discard = b"", bytearray(_AT_ONCE_BYTES)
    with connection, contextlib.suppress(OSError):
        while len(head) < _MOST_HEAD_BYTES and (data := connection.recv(4096)):
            head += data
            while _END in head:
                asked, _, head = head.partition(_END)
                length = _LENGTH.search(asked + b"\r\n")
                left = int(length[1]) if length else 0
                left, head = max(0, left - len(head)), head[left:]
                while left:
                    taken = connection.recv_into(discard, min(left, _AT_ONCE_BYTES), socket.MSG_TRUNC)
                    if not taken:
                        return
                    left -= taken
                connection.sendall(_THANKS)


def _accept(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def main() -> None:
    """Serve until standard input ends, after all others."""
    give_way()
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    print(listener.getsockname()[1], flush=True)  # noqa: T201 - stdout is the interface
    sys.stdin.read()


if __name__ == "__main__":
    main()
