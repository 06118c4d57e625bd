"""What a start takes hold of before it touches any state: the data directory and the two addresses.

A start that cannot have them ends with one line that names the setting, and has changed nothing:
a second service on the same directory would let go of the first one's leases, and one on the same
socket would take its clients.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from aiohttp import web

from service.keyset import KeySetError
from service.metadata.base import MetadataError
from service.setting_types import Address, TcpAddress, UnixAddress
from service.storage.base import StorageError
from service.web.connection import Connection, follow

LOCK_NAME: Final = "attachd.lock"
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


class CannotStart(Exception):
    """What a setting names is not to be had; one line for the operator."""


@contextlib.contextmanager
def naming(setting: str, what: object = "") -> Iterator[None]:
    """Trouble inside comes out as CannotStart, with the setting and what it says."""
    try:
        yield
    except (OSError, KeySetError, MetadataError, StorageError) as error:
        place = f"{what}: " if what else ""
        raise CannotStart(" ".join(f"{setting}: {place}{words(error)}".split())) from error


def words(error: Exception) -> str:
    """What an error says, without its number."""
    if isinstance(error, OSError) and error.strerror:
        # asyncio puts a sentence of its own around the system's
        number = error.errno if error.errno in errno.errorcode else None
        return (error.strerror if number is None else os.strerror(number)).lower()
    return str(error)


def own(directory: Path) -> int:
    """The directory exists and is this process's alone for as long as the descriptor is open. Blocks.

    The kernel gives the lock back when the process ends, however it does (lesson L4).

    Raises:
        CannotStart: another process has it, or it cannot be used.
    """
    with naming("ATTACHD_DATA", directory.absolute()):
        # what is in it is nobody else's: keys, the state, the files
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        why = "another attachd runs on it; stop that one first" if error.errno == errno.EWOULDBLOCK else words(error)
        raise CannotStart(f"ATTACHD_DATA: {directory.absolute()}: {why}") from error
    return lock


class Listener:
    """An address: taken by `take`, served by `serve`, given back by `close`."""

    def __init__(self, address: Address, setting: str) -> None:
        #: once taken, the one really bound: port 0 is the kernel's choice
        self.address = address
        self._setting = setting
        self._server: asyncio.Server | None = None
        self._runner: web.AppRunner | None = None
        self._made: tuple[int, int] | None = None

    async def take(self) -> None:
        """Nobody else can listen on the address; who connects is not served yet. Raises CannotStart."""
        loop, address = asyncio.get_running_loop(), self.address
        with naming(self._setting, f"cannot listen on {address}"):
            if isinstance(address, UnixAddress):
                bound, self._made = await asyncio.to_thread(_bind_unix, address.path)
                self._server = await loop.create_unix_server(
                    self._connection, sock=bound, backlog=_BACKLOG, start_serving=False
                )
                return
            self._server = await loop.create_server(
                self._connection,
                address.host,
                address.port,
                backlog=_BACKLOG,
                reuse_address=True,
                family=socket.AF_UNSPEC,
                start_serving=False,
            )
            self.address = TcpAddress(address.host, self._server.sockets[0].getsockname()[1])

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
        if isinstance(self.address, UnixAddress) and self._made is not None:
            made, self._made = self._made, None
            await asyncio.to_thread(_remove, self.address.path, made)


def _bind_unix(path: Path) -> tuple[socket.socket, tuple[int, int]]:
    """A listening socket at the path, and what tells it from a later one there. Raises OSError."""
    _clear_dead_socket(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(str(path))
        path.chmod(_SOCKET_MODE)
        # at once, so that a second start finds it alive
        bound.listen(_BACKLOG)
        bound.setblocking(False)
        return bound, _identity(path)
    except BaseException:
        bound.close()
        raise


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
