"""Bytes on their way to a client that its end has not taken yet: whether it reads, and not how fast, shows there."""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios


def queued(target: socket.socket) -> int:
    """Bytes in the socket that the client's end has not acknowledged; 0 where the system does not say."""
    try:
        count: tuple[int] = struct.unpack("i", fcntl.ioctl(target, termios.TIOCOUTQ, bytes(4)))
    except OSError:
        return 0
    return count[0]


def unsent(transport: asyncio.Transport) -> int:
    """Bytes that the client's end has not taken, 0 as long as its socket can still hold all of them.

    A transport hands on a good deal at once, so it is the sum that gets smaller with each byte.
    """
    size = transport.get_write_buffer_size()
    target = transport.get_extra_info("socket") if size else None
    return size if target is None else size + queued(target)
