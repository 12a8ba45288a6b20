"""Listening sockets that are made once and inherited by the receivers."""

from __future__ import annotations

import socket

from axonize_core.errors import ConfigurationError

__all__ = ["listen", "listen_beside"]

_BACKLOG = 1024


def listen(host: str, port: int, count: int) -> list[socket.socket]:
    """Sockets listening on one port; the kernel spreads connections over them.

    Raises:
        ConfigurationError: The address is taken, or not ours.
    """
    try:
        if count == 1:
            return [_listener(host, port)]
        # SO_REUSEPORT would join a stranger's sockets silently: look first whether the port is free.
        with _listener(host, port) as probe:
            port = probe.getsockname()[1]
        return [_listener(host, port, shared=True) for _ in range(count)]
    except OSError as error:
        raise _taken(host, port, error, "give another --http-port") from error


def listen_beside(host: str, port: int, *, shared: bool) -> socket.socket:
    """A socket for gRPC, which each receiver makes for itself, beside those of the other receivers.

    Raises:
        ConfigurationError: The address is taken, or not ours.
    """
    try:
        return _listener(host, port, shared=shared)
    except OSError as error:
        raise _taken(host, port, error, "give another --grpc-port (0: off)") from error


def _taken(host: str, port: int, error: OSError, instead: str) -> ConfigurationError:
    at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return ConfigurationError(f"cannot listen on {at} ({error.strerror}); stop what uses it, or {instead}")


def _listener(host: str, port: int, *, shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG, reuse_port=shared)
