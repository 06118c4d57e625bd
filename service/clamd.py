"""clamd, ClamAV's daemon, over its socket (clamd(8), INSTREAM).

One connection for each scan: the command, the content in chunks with their lengths in front, an
empty chunk, and one answer. clamd answers before the end if it has had enough, and closes; so the
answer is read beside the sending, and one that came before the connection broke counts. asyncio's
streams would drop it with the connection, hence bare sockets.

The clients there are for Python read a file object in the loop, or know TCP alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from typing import Final

from service.scanner import ScanError, ScanTooLarge
from service.setting_types import Address, UnixAddress

#: bytes of a chunk; clamd holds one at a time
_CHUNK: Final = 256 * 2**10
#: bytes of an answer, which is a name in a line
_MOST_ANSWER: Final = 4096
_CONNECT_SECONDS: Final = 5.0
#: for one chunk; clamd itself waits for two minutes (`ReadTimeout`)
_SEND_SECONDS: Final = 30.0
_CLEAN: Final = "stream: OK"
# answer = "stream: " signature-name [ blank details ] " FOUND"
_FOUND: Final = re.compile(r"stream: ([!-~]{1,200})(?: [ -~]*)? FOUND")
_TOO_LARGE: Final = "size limit exceeded"


class Clamd:
    """A `Scanner`. Nothing is open between two scans, so a clamd that is restarted is not noticed."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def scan(self, pieces: AsyncIterator[bytes]) -> str | None:
        """See `Scanner.scan`."""
        answer = await self._ask(b"zINSTREAM\0", pieces)
        if answer == _CLEAN:
            return None
        if found := _FOUND.fullmatch(answer):
            return found[1]
        if _TOO_LARGE in answer:
            raise ScanTooLarge(f"clamd takes fewer bytes: {answer}")
        raise ScanError(f"clamd answers {answer!r}")

    async def version(self) -> str:
        """What clamd says of itself and its signatures. Raises ScanError."""
        try:
            async with asyncio.timeout(_SEND_SECONDS):
                return await self._ask(b"zVERSION\0", None)
        except TimeoutError:
            raise ScanError(f"clamd at {self._address} does not answer") from None

    async def _ask(self, command: bytes, pieces: AsyncIterator[bytes] | None) -> str:
        with await self._connected() as line:
            answering = asyncio.ensure_future(_answer(line))
            try:
                # one that has closed may have said why
                with contextlib.suppress(ConnectionError):
                    await _send(line, command)
                    if pieces is not None:
                        await _stream(line, pieces, answering)
                return await answering
            except OSError as error:
                raise ScanError(f"clamd broke off: {error!r}") from error
            finally:
                answering.cancel()
                await asyncio.gather(answering, return_exceptions=True)

    async def _connected(self) -> socket.socket:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                return await _connect(self._address)
        except OSError as error:
            raise ScanError(f"clamd cannot be reached at {self._address}: {error!r}") from error


async def _connect(address: Address) -> socket.socket:
    """Raises OSError."""
    if isinstance(address, UnixAddress):
        return await _opened(socket.AF_UNIX, str(address.path))
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    for number, (family, _, _, _, where) in enumerate(found, 1):
        try:
            return await _opened(family, where)
        except OSError:
            if number == len(found):
                raise
    raise OSError("the name has no address")


async def _opened(family: int, where: object) -> socket.socket:
    line = socket.socket(family, socket.SOCK_STREAM)
    try:
        line.setblocking(False)
        await asyncio.get_running_loop().sock_connect(line, where)  # type: ignore[arg-type] # a path is one as well
    except BaseException:
        line.close()
        raise
    return line


async def _stream(line: socket.socket, pieces: AsyncIterator[bytes], answering: asyncio.Future[str]) -> None:
    """The content is with clamd, or clamd has answered already. Raises OSError."""
    async for piece in pieces:
        for start in range(0, len(piece), _CHUNK):
            if answering.done():
                return
            chunk = piece[start : start + _CHUNK]
            await _send(line, len(chunk).to_bytes(4, "big") + chunk)
    await _send(line, bytes(4))


async def _send(line: socket.socket, data: bytes) -> None:
    async with asyncio.timeout(_SEND_SECONDS):
        await asyncio.get_running_loop().sock_sendall(line, data)


async def _answer(line: socket.socket) -> str:
    """What comes before the first zero byte. Raises OSError, ScanError."""
    loop, answer = asyncio.get_running_loop(), b""
    while b"\0" not in answer:
        came = await loop.sock_recv(line, _MOST_ANSWER)
        answer += came
        if not came or len(answer) > _MOST_ANSWER:
            raise ScanError(f"clamd ended with {answer[:80]!r}, which is no answer")
    return answer.partition(b"\0")[0].decode("ascii", "replace").strip()
