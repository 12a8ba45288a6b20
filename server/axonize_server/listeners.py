"""Listening sockets that are made once and inherited by the receivers."""

from __future__ import annotations

import socket

from axonize_core.errors import ConfigurationError

__all__ = ["listen"]

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
        raise ConfigurationError(
            f"cannot listen on {host}:{port} ({error.strerror}); stop what uses it, or give another --http-port"
        ) from error


def _listener(host: str, port: int, *, shared: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG, reuse_port=shared)
