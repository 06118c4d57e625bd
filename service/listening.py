"""The addresses a service listens on, and our own connection class behind them.

A service of several processes shares one TCP port by SO_REUSEPORT: the kernel gives each new
connection to one of them. The supervisor's own socket is bound and never listens, so it gets none;
it keeps the port while workers come and go. A Unix socket cannot be shared like that: there all
processes accept from the one that the supervisor made.

Since a shared port takes anybody of the same user, also a service that has nothing to do with
this one, a start first tries the port for itself alone, unless it comes to take another's place.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import socket
import stat
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from service.setting_types import Address, TcpAddress, UnixAddress
from service.starting import naming
from service.web.connection import Connection
from service.web.turns import follow

#: a proxy that reaches the socket is in its group
_SOCKET_MODE: Final = 0o660
#: aiohttp's limits on a header line and on the request line, for `Upload-Concat` and `?sig=` (A-04)
_LINE_BYTES: Final = 65536
#: how long a refused body is read and thrown away, so that the client sees the answer (A-12)
_LINGER_SECONDS: Final = 2.0
_KEEPALIVE_SECONDS: Final = 75.0
#: how long a request under way is waited for at the end, and once more after its task was told
_LAST_SECONDS: Final = 0.5
_BACKLOG: Final = 1024
_PROBE_SECONDS: Final = 1.0
_AGAIN_SECONDS: Final = 0.05


class Listener:
    """An address: taken by `take`, served by `serve`, given back by `close`."""

    def __init__(self, address: Address, setting: str) -> None:
        #: once taken, the one really bound: port 0 is the kernel's choice
        self.address = address
        self._setting = setting
        self._server: asyncio.Server | None = None
        self._runner: web.AppRunner | None = None
        self._made: tuple[int, int] | None = None
        self._bound: socket.socket | None = None
        self._guard: socket.socket | None = None

    async def take(self, *, beside: bool = False) -> None:
        """Nobody else can listen on the address; who connects is not served yet. Raises CannotStart.

        Args:
            beside: others may listen there already, and go on; of a Unix socket new connections come here.
        """
        address = self.address
        with naming(self._setting, f"cannot listen on {address}"):
            if isinstance(address, UnixAddress):
                bound, self._made = await asyncio.to_thread(_bind_unix, address.path, beside=beside)
                await self._accept_from(bound)
                return
            if not beside:
                self._guard = await asyncio.to_thread(_guarded, address)
                await asyncio.to_thread(_in_time, partial(_try_alone, address))
            await self._share_port(address)

    async def join(self, bound: socket.socket | None) -> None:
        """Listens where the supervisor of this process has taken the address. Raises CannotStart.

        Args:
            bound: its Unix socket; None where the address is a port.
        """
        with naming(self._setting, f"cannot listen on {self.address}"):
            if isinstance(self.address, TcpAddress):
                await self._share_port(self.address)
            elif bound is not None:
                await self._accept_from(bound)

    async def _share_port(self, address: TcpAddress) -> None:
        self._server = await asyncio.get_running_loop().create_server(
            self._connection,
            address.host,
            address.port,
            backlog=_BACKLOG,
            reuse_address=True,
            reuse_port=True,
            family=socket.AF_UNSPEC,
            start_serving=False,
        )
        self.address = TcpAddress(address.host, self._server.sockets[0].getsockname()[1])

    async def _accept_from(self, bound: socket.socket) -> None:
        self._bound = bound
        # the path is removed by whoever made it, and not when the first worker ends
        keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        self._server = await asyncio.get_running_loop().create_unix_server(
            self._connection, sock=bound, backlog=_BACKLOG, start_serving=False, **keep
        )

    @property
    def bound(self) -> socket.socket | None:
        """What other processes need to `join`: the Unix socket, None where the address is a port."""
        return self._bound

    def _connection(self) -> Connection:
        if self._runner is None or self._runner.server is None:
            raise RuntimeError("a connection came before there was anything to serve it")
        return Connection(self._runner.server())

    async def serve(self, app: web.Application) -> None:
        """Requests are served from now on, behind our own connection class. Raises CannotStart."""
        if self._server is None:
            raise RuntimeError("the address has not been taken")
        follow(app)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            auto_decompress=False,
            max_field_size=_LINE_BYTES,
            max_line_size=_LINE_BYTES,
            lingering_time=_LINGER_SECONDS,
            keepalive_timeout=_KEEPALIVE_SECONDS,
            handler_cancellation=False,
            shutdown_timeout=_LAST_SECONDS,
        )
        await self._runner.setup()
        with naming(self._setting, f"cannot listen on {self.address}"):
            await self._server.start_serving()

    async def end(self) -> None:
        """No new connection, and none is left: idle ones end at once, a request under way has a moment."""
        await self.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def close(self) -> None:
        """The address is free again."""
        if self._server is not None:
            self._server.close()
        if self._guard is not None:
            self._guard.close()
            self._guard = None
        if isinstance(self.address, UnixAddress) and self._made is not None:
            made, self._made = self._made, None
            await asyncio.to_thread(_remove, self.address.path, made)


def _in_time(take: Callable[[], None]) -> None:
    """The address could be taken. Who has it and ends just now is waited for. Raises OSError."""
    deadline = time.monotonic() + _PROBE_SECONDS
    while True:
        try:
            take()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise
            time.sleep(_AGAIN_SECONDS)
        else:
            return


def _guarded(address: TcpAddress) -> socket.socket | None:
    """What tells another start that the port is taken, from before anybody listens on it. Raises OSError.

    Its name is of the network, as the port is, and gone with the process. None where there are no such names.
    """
    if sys.platform != "linux" or not address.port:
        return None
    guard = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _in_time(partial(guard.bind, f"\0attachd {address}"))
    except BaseException:
        guard.close()
        raise
    return guard


def _try_alone(address: TcpAddress) -> None:
    """Nobody listens on the port. Raises OSError."""
    for family, kind, protocol, _, place in socket.getaddrinfo(
        address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # as asyncio does: the other family has a socket of its own
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(place)


def _bind_unix(path: Path, *, beside: bool) -> tuple[socket.socket, tuple[int, int]]:
    """A listening socket at the path, and what tells it from another one there. Raises OSError."""
    if not beside:
        _in_time(partial(_clear_dead_socket, path))
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # under a name of its own first: at no moment does the path lead nowhere
    place = path.with_name(f"{path.name}.{secrets.token_hex(4)}") if beside else path
    try:
        bound.bind(str(place))
        place.chmod(_SOCKET_MODE)
        # at once, so that a second start finds it alive
        bound.listen(_BACKLOG)
        bound.setblocking(False)
        made = _identity(place)
        if place != path:
            place.rename(path)
    except BaseException:
        bound.close()
        if place != path:
            place.unlink(missing_ok=True)
        raise
    return bound, made


def _clear_dead_socket(path: Path) -> None:
    """A socket that nobody listens on any more is removed. Raises OSError: somebody does, or it cannot be told."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_SECONDS)
            probe.connect(str(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return
    except (TimeoutError, BlockingIOError):
        # alive, with a full backlog
        pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _remove(path: Path, made: tuple[int, int]) -> None:
    """Our socket is gone; one that took its place stays."""
    with contextlib.suppress(OSError):
        if _identity(path) == made:
            path.unlink()


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino
