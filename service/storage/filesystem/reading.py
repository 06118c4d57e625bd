"""Reading back, through aiofiles: none of this is on the fast path."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial

import aiofiles
import aiofiles.os

from service.model import Part
from service.storage.base import StorageShort
from service.storage.filesystem.layout import Layout, translated
from service.storage.threads import Threads

#: bytes of one piece
PIECE = 1 << 20

_pread = aiofiles.os.wrap(os.pread)


async def read_upload(
    layout: Layout, threads: Threads, ledger: Sequence[Part], start: int, end: int
) -> AsyncIterator[bytes]:
    """See `Storage.read_upload`."""
    if not 0 <= start <= end <= (ledger[-1].end if ledger else 0):
        raise StorageShort("the ledger does not reach so far")
    for part in ledger:
        low, high = max(start, part.start), min(end, part.end)
        if low >= high:
            continue
        with translated("reading"):
            async with aclosing(_read_part(layout, threads, part, low, high)) as pieces:
                async for piece in pieces:
                    yield piece


async def _read_part(layout: Layout, threads: Threads, part: Part, low: int, high: int) -> AsyncGenerator[bytes]:
    """Bytes [low, high) of the upload, which are in that part. One thread call for each piece, the opening included."""
    # kept by the thread itself: a descriptor must not be lost with the result of a cancelled call
    found: list[tuple[int, int]] = []

    def read(start: int) -> bytes:
        if not found:
            found.append(layout.open_part(part))
        fd, first = found[0]
        piece = os.pread(fd, min(PIECE, high - start), first + start - part.start)
        if start + len(piece) >= high:
            os.close(fd)
            found.clear()
        return piece

    try:
        at = low
        while at < high:
            piece = await threads.run(partial(read, at))
            if not piece:
                raise StorageShort("the file is shorter than it was")
            at += len(piece)
            yield piece
    finally:
        for fd, _ in found:
            await threads.surely(partial(os.close, fd))


async def read_range(threads: Threads, fd: int, start: int, end: int) -> AsyncIterator[bytes]:
    """Bytes [start, end) of an open file, a piece at a time; the kernel is who reads ahead.

    Raises:
        StorageShort: permanent; the file ends before that.
    """
    at = start
    while at < end:
        piece = await _pread(fd, min(PIECE, end - at), at, executor=threads.executor)
        if not piece:
            raise StorageShort("the file is shorter than it was")
        at += len(piece)
        yield piece


class DiskFile:
    """A finished file, open for reading."""

    def __init__(self, threads: Threads, fd: int, size: int) -> None:
        self._threads = threads
        self._fd = fd
        self.size = size

    @property
    def fd(self) -> int | None:
        """For the kernel's sendfile, with a position of the caller's own."""
        return self._fd

    async def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """See `StoredFile.read`."""
        with translated("reading"):
            async for piece in read_range(self._threads, self._fd, start, end):
                yield piece


@asynccontextmanager
async def opened(layout: Layout, threads: Threads, key: str) -> AsyncIterator[DiskFile]:
    """See `Storage.open_file`."""
    path = layout.file(key)
    with translated("opening a file"):
        try:
            file = await aiofiles.open(path, "rb", executor=threads.executor)
        except FileNotFoundError:
            raise await threads.run(layout.gone_file) from None
    try:
        with translated("opening a file"):
            size = (await aiofiles.os.stat(file.fileno(), executor=threads.executor)).st_size
        yield DiskFile(threads, file.fileno(), size)
    finally:
        await file.close()
