"""The bytes of a file into a response: by the kernel's sendfile where there is one, else in pieces.

How the kernel's way goes together with aiohttp, under asyncio's loop and uvloop alike (only
asyncio's own has a `loop.sendfile`):

1. `StreamResponse.prepare` writes the headers. The transport's high-water mark is 0 meanwhile, so
   `drain` returns once its buffer is empty: from then on the transport has nothing to write.
2. The socket is duplicated, because a loop lets nobody wait on a descriptor that one of its
   transports owns. Both names are one socket, so it is non-blocking already.
3. `os.sendfile` goes on in a thread until the socket is full, for a file that is not in the page
   cache waits for the disk; the loop waits until the socket takes more.
4. aiohttp keeps no count of body bytes against `Content-Length`; `write_eof` without data ends the
   response and leaves the connection ready for the next request.

Guarantees: a response is whole, or its connection is aborted: never a short body that looks
finished. A slow client is served for as long as its end takes bytes; one that takes none for
`idle_seconds` is cut off (lesson G1).
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import structlog

from service.storage.base import StorageError, StorageShort
from service.web.unsent import queued

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.abc import AbstractStreamWriter

    from service.metrics import DownloadMode, TransferOutcome
    from service.storage.base import StoredFile

log = structlog.get_logger(__name__)

#: bytes; a step is what the kernel is asked for at once, a round what a thread sends before others may
STEP: Final = 128 * 1024
ROUND: Final = 8 * 1024 * 1024
#: bytes not yet sent that the socket holds at most: more would only make it slower to answer
NOT_SENT: Final = 128 * 1024
THREADS: Final = 8


@dataclass(frozen=True, slots=True)
class Body:
    """The bytes [start, end) of an open file, at least one, and where they are counted as they leave."""

    file: StoredFile
    start: int
    end: int
    sent: Callable[[DownloadMode, int], None]
    idle_seconds: float = 60.0


async def send(request: web.Request, response: web.StreamResponse, body: Body) -> TransferOutcome:
    """The response is on its way to the client, whole, or the connection is gone.

    `response` carries every header, Content-Length included, and is not prepared yet; the request
    is no HEAD.
    """
    try:
        if (out := _socket_of(request)) is not None and body.file.fd is not None:
            await _by_kernel(request, response, body, out, body.file.fd)
        else:
            await _in_pieces(request, response, body)
    except asyncio.CancelledError:
        # the service stops and its grace is over
        _abort(request, response)
        raise
    except TimeoutError:
        return _ended(request, response, "timeout")
    except (StorageError, OSError) as error:
        if isinstance(error, ConnectionError) or (isinstance(error, OSError) and error.errno in _CLIENT_GONE):
            return _ended(request, response, "client_abort")
        # without a traceback: to format one is to read source files on the event loop
        if isinstance(error, StorageShort):
            log.error("bytes_lost", reason="internal", error=repr(error))  # noqa: TRY400
        else:
            log.error("download_failed", reason="storage-unavailable", error=repr(error))  # noqa: TRY400
        return _ended(request, response, "error")
    return "ok"


_CLIENT_GONE: Final = frozenset(
    {errno.ENOTCONN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}
)


def _ended(request: web.Request, response: web.StreamResponse, outcome: TransferOutcome) -> TransferOutcome:
    if outcome != "error":
        log.info("download_cut", reason=outcome)
    _abort(request, response)
    return outcome


def _abort(request: web.Request, response: web.StreamResponse) -> None:
    """The connection ends before `Content-Length` is reached, which no client takes for the end of the body."""
    response.force_close()
    if request.transport is not None:
        request.transport.abort()


def _socket_of(request: web.Request) -> socket.socket | None:
    """The client's socket if raw bytes may be put on it: no TLS in between, and a kernel with sendfile."""
    transport = request.transport
    if transport is None or transport.get_extra_info("sslcontext") is not None or not hasattr(os, "sendfile"):
        return None
    found: socket.socket | None = transport.get_extra_info("socket")
    return found


async def _by_kernel(
    request: web.Request, response: web.StreamResponse, body: Body, out: socket.socket, file: int
) -> None:
    """Steps 1 to 4 of the module. Raises ConnectionError, TimeoutError, StorageShort, OSError."""
    writer = await _send_headers(request, response, body.idle_seconds)
    loop = asyncio.get_running_loop()
    async with _duplicate(out) as target:
        position = body.start
        while position < body.end:
            count = await _in_thread(_round, target.fileno(), file, position, min(body.end, position + ROUND))
            position += count
            # for the access log, and so that an error now is known to come after the headers
            writer.output_size += count
            body.sent("sendfile", count)
            if position == body.end:
                break
            _still_there(request)
            if count < ROUND:
                await _moving(_writable(loop, target), lambda: queued(target), body.idle_seconds)


async def _in_pieces(request: web.Request, response: web.StreamResponse, body: Body) -> None:
    """The same through user space: for TLS, and for storage that has no local file."""
    await response.prepare(request)
    position = body.start
    async for piece in body.file.read(body.start, body.end):
        transport = _still_there(request)
        await _moving(response.write(piece), transport.get_write_buffer_size, body.idle_seconds)
        position += len(piece)
        body.sent("proxy", len(piece))
    if position != body.end:
        raise StorageShort("the file ended before its size")


async def _send_headers(
    request: web.Request, response: web.StreamResponse, idle_seconds: float
) -> AbstractStreamWriter:
    """The headers have left the transport's buffer, and whatever was there before them."""
    transport = _still_there(request)
    transport.set_write_buffer_limits(high=0)
    try:
        writer = await response.prepare(request)
        if writer is None:
            raise ConnectionResetError("the response was ended before it began")
        if transport.get_write_buffer_size():
            await _moving(writer.drain(), transport.get_write_buffer_size, idle_seconds)
    finally:
        transport.set_write_buffer_limits()
    if transport.get_write_buffer_size():
        # bytes of ours would overtake them
        raise ConnectionResetError("the headers could not be sent")
    return writer


def _still_there(request: web.Request) -> asyncio.Transport:
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client is gone")
    return transport


@asynccontextmanager
async def _duplicate(out: socket.socket) -> AsyncIterator[socket.socket]:
    if out.fileno() < 0:
        raise ConnectionResetError("the client is gone")
    with socket.socket(fileno=os.dup(out.fileno())) as target:
        if target.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_NOTSENT_LOWAT"):
            target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT)
        yield target


def _round(target: int, file: int, start: int, end: int) -> int:
    """How many of the bytes [start, end) the socket took before it was full. In a thread."""
    position = start
    while position < end:
        try:
            count = os.sendfile(target, file, position, min(STEP, end - position))
        except BlockingIOError:
            break
        except OSError:
            if position > start:
                # what has gone out counts; the next round meets the error again
                break
            raise
        if count == 0:
            raise StorageShort("the file ended before its size")
        position += count
    return position - start


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="sendfile")


async def _in_thread(work: Callable[..., int], *args: int) -> int:
    """The result of the work. Not left before the thread is done, for it uses the caller's descriptors."""
    future = asyncio.get_running_loop().run_in_executor(_threads(), work, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        future.exception()
        raise


def _writable(loop: asyncio.AbstractEventLoop, target: socket.socket) -> asyncio.Future[None]:
    """Done once the socket takes bytes, or has an error to tell."""
    future: asyncio.Future[None] = loop.create_future()
    descriptor = target.fileno()

    def ready() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_writer(descriptor, ready)
    future.add_done_callback(lambda _: loop.remove_writer(descriptor))
    return future


async def _moving(waited: Awaitable[object], waiting: Callable[[], int], idle_seconds: float) -> None:
    """Waits as long as the queue in front of it gets shorter: slow is fine, silent is not (lesson G1).

    Raises:
        TimeoutError: nothing moved for `idle_seconds`.
    """
    future = asyncio.ensure_future(waited)
    try:
        before = waiting()
        while not (await asyncio.wait([future], timeout=idle_seconds))[0]:
            if (now := waiting()) >= before:
                raise TimeoutError
            before = now
        future.result()
    finally:
        future.cancel()
