"""Servers in clamd's place that speak its protocol as it does (clamd(8)), and one that is clamd itself."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Literal

#: what every scanner takes for a virus, in pieces, so that none finds it in this file
EICAR: Final = (r"X5O!P%@AP[4\PZX54(P^)7CC)7}$" + "EICAR-STANDARD-" + "ANTIVIRUS-TEST-FILE!" + "$H+H*").encode()
SIGNATURE: Final = "Eicar-Test"

Manner = Literal[
    "honest",
    # what it does instead, once it has read the command and 100,000 bytes, or all if that is less
    "hangs", "dies", "garbage", "no end", "endless", "error",
]  # fmt: skip
_BEFORE_FAULT: Final = 100_000


class Double:
    """A clamd for one event loop; what it was sent, and how many scans ran at once at most."""

    def __init__(self, *, most: int = 2**30) -> None:
        self.most = most
        self.manner: Manner = "honest"
        #: clear: it answers nothing until it is set
        self.free = asyncio.Event()
        self.free.set()
        self.scanned: list[bytes] = []
        self.largest_chunk = 0
        self.running = 0
        self.most_running = 0
        self.address = ""
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def serving(self, path: Path | None = None, port: int = 0) -> AsyncIterator[Double]:
        """Listens, on a Unix socket where a path is given."""
        if path is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
            self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        else:
            self._server = await asyncio.start_unix_server(self._serve, path)
            self.address = f"unix:{path}"
        try:
            yield self
        finally:
            self._server.close()
            for writer in self._open:
                writer.transport.abort()
            await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                command = await reader.readuntil(b"\0")
                if command == b"zVERSION\0":
                    writer.write(b"ClamAV 1.4.6/27065/Wed Oct 18 09:49:14 2023\0")
                else:
                    assert command == b"zINSTREAM\0", command
                    await self._instream(reader, writer)
                await writer.drain()
        finally:
            self.running -= 1
            self._open.discard(writer)
            writer.close()

    async def _instream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        content = bytearray()
        while size := int.from_bytes(await reader.readexactly(4), "big"):
            self.largest_chunk = max(size, self.largest_chunk)
            if len(content) + size > self.most:
                writer.write(b"INSTREAM size limit exceeded. ERROR\0")
                return
            content += await reader.readexactly(size)
            if self.manner != "honest" and len(content) >= _BEFORE_FAULT:
                break
        await self.free.wait()
        match self.manner:
            case "honest":
                self.scanned.append(bytes(content))
                found = f"stream: {SIGNATURE} FOUND\0" if EICAR in content else "stream: OK\0"
                writer.write(found.encode())
            case "hangs":
                await asyncio.Event().wait()
            case "dies":
                writer.transport.abort()
            case "garbage":
                writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n\0")
            case "no end":
                writer.write(b"stream: OK")
            case "endless":
                writer.write(b"stream: O" + b"K" * 100_000)
            case "error":
                writer.write(b"stream: Can't allocate memory ERROR\0")


def has_clamd() -> bool:
    return _clamd() is not None


def _clamd() -> str | None:
    # it is for root alone on some systems
    return shutil.which("clamd") or shutil.which("clamd", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def real_clamd(folder: Path, *, most: str = "25M") -> Iterator[Path]:
    """clamd itself, which knows one signature; the path of its socket.

    Without a signature it does not start, and those there are come from a server of ClamAV's.
    """
    program = _clamd()
    assert program is not None
    database, socket, config = folder / "signatures", folder / "clamd.sock", folder / "clamd.conf"
    database.mkdir()
    (database / "own.hdb").write_text(f"{hashlib.md5(EICAR).hexdigest()}:{len(EICAR)}:{SIGNATURE}-Whole\n")
    (database / "own.ndb").write_text(f"{SIGNATURE}:0:*:{EICAR.hex()}\n")
    config.write_text(
        f"LocalSocket {socket}\nDatabaseDirectory {database}\nForeground yes\nLogFile {folder / 'clamd.log'}\n"
        f"PidFile {folder / 'clamd.pid'}\nTemporaryDirectory {folder}\nStreamMaxLength {most}\nSelfCheck 0\n"
    )
    with subprocess.Popen(
        [program, "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    ) as process:
        try:
            _wait(lambda: socket.exists() or process.poll() is not None)
            assert process.poll() is None, (folder / "clamd.log").read_text()
            yield socket
        finally:
            process.kill()


def _wait(reached: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)
