"""Ports for servers that must know theirs before they listen.

One that the system names, by a bind to port 0, is of the range that it also takes the ports of
outgoing connections from: with a few tests at once one of those has it before the server listens.
These are of another range, each process of a run has its own piece of it, and none gives a port
twice before it has given all.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from typing import Final

#: below it are well-known services; from END on Linux has outgoing connections (ip(7), ip_local_port_range)
FIRST: Final = 10_000
END: Final = 32_768


def _own() -> range:
    """The ports of this process, one of several that pytest-xdist started, or the only one."""
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    size = (END - FIRST) // count
    return range(FIRST + number % count * size, FIRST + (number % count + 1) * size)


_PORTS: Final = _own()
#: where to go on; two runs on one machine hardly begin at the same
_next = random.SystemRandom().randrange(len(_PORTS))


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, nor will but whoever is given it.

    Raises:
        OSError: there is none.
    """
    global _next  # noqa: PLW0603 - one sequence for the process
    for _ in _PORTS:
        port = _PORTS[_next]
        _next = (_next + 1) % len(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no port is free")
