"""The Storage port over a directory: thin, asynchronous, every blocking call in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import aiofiles
import aiofiles.os
import aiofiles.tempfile
import structlog

from service.model import Part, UploadId
from service.storage.base import (
    Backing,
    Fence,
    Held,
    Keep,
    Observer,
    Receipt,
    StorageError,
    StorageFull,
    StorageUnavailable,
    Stored,
)
from service.storage.filesystem import examining, listing, publishing, putting, reading, salvaging
from service.storage.filesystem.appender import DiskAppender
from service.storage.filesystem.layout import Durability, Layout, lock, translated
from service.storage.threads import Threads

log = structlog.get_logger(__name__)

_PROBE: Final = b"attachd" * 64


class FilesystemStorage:
    """See the package for layout, mechanism and guarantees.

    Args:
        root: the directory; made if missing.
        durability: `complete`, `always` or `none` (contract, section 5).
        threads: how many writes run at once, and as many again of what is slower (syncs), of reads,
            of joins and of completions, which may copy a whole file: so none of those keeps a
            byte of an upload, a new upload or a download waiting, nor joins the end of an upload.
        reserve_bytes: free space that uploads may not use, so that whoever shares the disk, above
            all the database that records them, can still write.
    """

    name = "filesystem"

    def __init__(self, root: Path, *, durability: str, threads: int = 8, reserve_bytes: int = 0) -> None:
        #: until it is found that the file system has no hard links
        self.puts = True
        self.extends = True
        self._layout = Layout(root, Durability(durability), reserve_bytes)
        self._writers = Threads(threads, "attachd-write")
        self._helpers = Threads(threads, "attachd-disk")
        self._joiners = Threads(threads, "attachd-join")
        self._publishers = Threads(threads, "attachd-publish")

    async def open(self, *, look: bool = False) -> None:
        """See `Storage.open`."""
        try:
            if look:
                # a disk that is mounted read-only can be looked at too
                await self._helpers.run(self._layout.check_there)
                return
            with translated("it cannot be made"):
                await self._helpers.run(self._layout.make)
            # from a full disk can be read, and `probe` goes on saying what cannot be done
            with suppress(StorageFull):
                await self.probe()
        except StorageError as error:
            raise StorageError(f"the storage directory {self._layout.root} cannot be used: {error}") from error

    async def close(self) -> None:
        """See `Storage.close`."""
        for threads in (self._writers, self._helpers, self._joiners, self._publishers):
            threads.close()

    async def probe(self) -> None:
        """See `Storage.probe`. What it writes has no name, so that nothing stays after a crash."""
        for directory in (self._layout.uploads, self._layout.files):
            with translated(f"{directory.name}/ cannot be written"):
                await self._probe(directory)

    async def _probe(self, directory: Path) -> None:
        async with aiofiles.tempfile.TemporaryFile(
            "wb", buffering=0, dir=directory, executor=self._helpers.executor
        ) as file:
            await file.write(_PROBE)
            if not await self._helpers.run(lambda: lock(file.fileno())):
                raise StorageUnavailable("it does not give locks")

    async def free_bytes(self) -> int | None:
        """See `Storage.free_bytes`. What an unprivileged user may still write, less the reserve."""
        with translated("asking for free space"):
            return await self._helpers.run(self._layout.free_bytes)

    @asynccontextmanager
    async def append(
        self,
        upload_id: UploadId,
        ledger: Sequence[Part],
        *,
        epoch: int,
        align: int,
        observe: Observer | None = None,
        fence: Fence | None = None,
        keep: Keep | None = None,
    ) -> AsyncIterator[DiskAppender]:
        """See `Storage.append`. All that is held can be read, so `align` changes nothing; nothing needs to be kept."""
        appender = self._appender(upload_id, ledger, epoch=epoch, observe=observe, fence=fence)
        try:
            yield appender
        finally:
            await appender.close()

    def _appender(
        self,
        upload_id: UploadId,
        ledger: Sequence[Part],
        *,
        epoch: int,
        observe: Observer | None = None,
        fence: Fence | None = None,
    ) -> DiskAppender:
        return DiskAppender(
            self._layout, self._writers, self._helpers, upload_id, ledger, epoch=epoch, observe=observe, fence=fence
        )

    def read_upload(self, ledger: Sequence[Part], start: int, end: int) -> AsyncIterator[bytes]:
        """See `Storage.read_upload`."""
        return reading.read_upload(self._layout, self._helpers, ledger, start, end)

    async def examine(self, upload_id: UploadId, ledger: Sequence[Part], *, older_than: float) -> Backing:
        """See `Storage.examine`. Bytes behind the ledger's end, in a segment that it names, are not told of."""
        before = time.time() - older_than
        with translated("looking"):
            return await self._helpers.run(partial(examining.examine, self._layout, upload_id, ledger, before))

    async def extend(
        self, upload_id: UploadId, ledger: Sequence[Part], data: memoryview, *, epoch: int
    ) -> Receipt | None:
        """See `Storage.extend`."""
        appender = self._appender(upload_id, ledger, epoch=epoch)
        return await self._writers.run(lambda: appender.extend(data))

    async def put(self, upload_id: UploadId, data: memoryview) -> Stored:
        """See `Storage.put`."""
        with translated("writing"):
            try:
                # it may sync, which keeps no byte of another upload waiting there
                return await self._publishers.run(lambda: putting.put(self._layout, upload_id, data))
            except putting.NoLinks:
                log.warning("links_missing", detail="small files are stored the long way on this file system")
                self.puts = False
                raise StorageUnavailable("it has no hard links") from None

    async def recorded(self, upload_ids: Sequence[UploadId]) -> None:
        """See `Storage.recorded`."""
        with translated("removing"):
            await self._helpers.run(lambda: putting.unmark(self._layout, upload_ids))

    async def concatenate(self, upload_id: UploadId, sources: Sequence[Sequence[Part]], *, epoch: int) -> Receipt:
        """See `Storage.concatenate`. Copied by the kernel; where extents are shared, not at all."""
        stop = threading.Event()
        with translated("joining"):
            return await self._joiners.run(
                lambda: publishing.concatenate(self._layout, upload_id, sources, epoch, stop), stop=stop.set
            )

    async def complete(self, upload_id: UploadId, ledger: Sequence[Part], *, epoch: int) -> Stored:
        """See `Storage.complete`."""
        stop = threading.Event()
        with translated("publishing"):
            return await self._publishers.run(
                lambda: publishing.complete(self._layout, upload_id, ledger, epoch, stop), stop=stop.set
            )

    async def sync(self, ledger: Sequence[Part]) -> None:
        """See `Storage.sync`. Bytes, then the names of their segments."""
        if self._layout.durability is not Durability.NONE:
            with translated("syncing"):
                await self._publishers.run(lambda: publishing.sync(self._layout, ledger))

    async def salvage(self, upload_id: UploadId, ledger: Sequence[Part], *, fence: Fence) -> tuple[Part, ...]:
        """See `Salvage`."""
        with translated("salvaging"):
            file = await self._helpers.run(lambda: salvaging.look(self._layout, upload_id))
            if file is not None:
                await fence()
            return await self._helpers.run(lambda: salvaging.salvage(self._layout, upload_id, ledger, file))

    async def discard(self, upload_id: str, *, finished: bool = False) -> None:
        """See `Storage.discard`. Segments first: without one, nothing becomes a file any more."""
        whole = UploadId(upload_id)  # the name of an upload is its id here
        with translated("discarding"):
            segments = await self._helpers.run(lambda: self._layout.segments(whole))
            await self.drop(whole, [key for key, _ in segments])
        if finished:
            await self.delete(whole)

    async def drop(self, upload_id: UploadId, keys: Sequence[str]) -> None:
        """See `Storage.drop`. Raises ValueError: a key of another upload."""
        if not all(key.startswith(f"{upload_id}.") for key in keys):
            raise ValueError("a key of another upload")
        for key in keys:
            await self._unlink(self._layout.segment(key))

    async def delete(self, key: str) -> None:
        """See `Storage.delete`. A mark that a crash has left is a name of the same bytes."""
        with translated("removing"):
            await self._helpers.run(lambda: putting.remove(self._layout, key))

    async def held(self, *, older_than: float) -> AsyncIterator[Held]:
        """See `Storage.held`. A shard is listed in one call, so that no directory is held open meanwhile."""
        before = time.time() - older_than
        failed: StorageError | None = None
        for directory, listed in listing.listings(self._layout):
            with translated("listing"):
                shards = await self._helpers.run(partial(listing.shards, directory))
            for shard in shards:
                try:
                    with translated(f"listing {shard.name}/"):
                        found = await self._helpers.run(partial(listed, shard, before))
                except StorageError as error:
                    failed = failed or error
                    continue
                for held in found:
                    yield held
        if failed is not None:
            raise failed

    async def _unlink(self, path: Path) -> None:
        with translated("removing"), suppress(FileNotFoundError):
            await aiofiles.os.remove(path, executor=self._helpers.executor)

    def proxy_path(self, key: str) -> str | None:
        """See `Storage.proxy_path`."""
        return self._layout.file(key).relative_to(self._layout.root).as_posix()

    async def signed_url(self, key: str, *, seconds: int, content_type: str, disposition: str) -> str | None:
        """See `Storage.signed_url`. A directory has no URLs."""
        return None

    @asynccontextmanager
    async def open_file(self, key: str) -> AsyncIterator[reading.DiskFile]:
        """See `Storage.open_file`."""
        async with reading.opened(self._layout, self._helpers, key) as file:
            yield file
