"""What the clients of a receiver make it hold, over all transports together."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Buffers"]


@dataclass
class Buffers:
    """An account of bytes received and not yet done with; every connection of a receiver notes its own here."""

    limit_bytes: int = 512 << 20
    held_bytes: int = 0

    def has_room(self, more: int = 0) -> bool:
        """Whether so many bytes more stay within the limit."""
        return self.held_bytes + more <= self.limit_bytes

    @property
    def is_busy(self) -> bool:
        """Whether what is held is so much that a connection had better keep no buffer for its next request."""
        return self.held_bytes > self.limit_bytes // 4
