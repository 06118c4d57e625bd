"""The Storage port over a bucket: wires the pieces together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import structlog

from service.clock import Clock
from service.model import Part, UploadId
from service.storage.base import (
    Fence,
    Held,
    Observer,
    Receipt,
    StorageError,
    StorageShort,
    StorageUnavailable,
    Stored,
)
from service.storage.parts import part_size
from service.storage.s3 import leftovers, naming, reading
from service.storage.s3.appender import S3Appender
from service.storage.s3.calls import Calls, Watch
from service.storage.s3.client import S3Options, StoreRefused
from service.storage.s3.completing import Completer
from service.storage.s3.joining import Joiner
from service.storage.s3.memory import Memory
from service.storage.s3.probing import store_checks_checksums
from service.storage.s3.segments import Segments
from service.storage.threads import Threads

log = structlog.get_logger(__name__)


def _nobody(operation: str, outcome: str, seconds: float) -> None:
    """Nobody watches the calls."""


class S3Storage:
    """See the package for layout, mechanism, guarantees and rights.

    Args:
        options: the bucket.
        clock: for how long bytes wait.
        memory: for all that waits to be stored or read; at least six parts.
        most_bytes: the largest upload there may be.
        part_bytes: of a part, if 10,000 of them are enough.
        watch: is told of every call to the store.
        threads: calls of a kind (with a body; reads; others) that run at once.
    """

    name = "s3"

    def __init__(
        self,
        options: S3Options,
        clock: Clock,
        memory: Memory,
        *,
        most_bytes: int,
        part_bytes: int,
        watch: Watch = _nobody,
        threads: int = 16,
    ) -> None:
        self._clock = clock
        #: whether it is known what the store can
        self._known = False
        self._most_bytes = most_bytes
        self._part_bytes = part_bytes
        self._memory = memory
        self._calls = Calls(options, clock, watch, threads=threads)
        self._workers = Threads(4, "attachd-s3-work")
        self._segments = Segments(self._calls, self._memory, self._workers)
        self._completer = Completer(self._calls, self._memory, self._segments)
        self._joiner = Joiner(
            self._calls,
            self._memory,
            self._segments,
            self._completer,
            part_bytes=part_size(most_bytes, wanted=part_bytes, align=1),
        )

    async def open(self) -> None:
        """See `Storage.open`. A store that is only away now does not keep the service from starting."""
        await self._workers.run(lambda: self._calls.connect(checksums=False))
        try:
            await self.probe()
        except StoreRefused as error:
            raise StorageError(f"the bucket cannot be used ({error}); `attachd doctor` tells more") from error
        except StorageUnavailable as error:
            log.warning("storage_away", reason=str(error))

    async def close(self) -> None:
        """See `Storage.close`."""
        self._calls.close()
        self._workers.close()

    async def probe(self) -> None:
        """See `Storage.probe`. The first one that finds the store also finds out what it can."""
        await self._calls.head_bucket()
        if not self._known:
            checked = await store_checks_checksums(self._calls)
            await self._workers.run(lambda: self._calls.connect(checksums=checked))
            self._known = True
            log.info("storage_found", checksums="crc32c" if checked else "none")

    async def free_bytes(self) -> int | None:
        """See `Storage.free_bytes`. A bucket has no end."""
        return None

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
    ) -> AsyncIterator[S3Appender]:
        """See `Storage.append`."""
        if fence is not None:
            await fence()
        appender = S3Appender(
            self._calls,
            self._memory,
            self._segments,
            self._workers,
            self._clock,
            upload_id,
            ledger,
            part_bytes=part_size(self._most_bytes, wanted=self._part_bytes, align=align),
            align=align,
            epoch=epoch,
            observe=observe,
            fence=fence,
        )
        try:
            yield appender
        finally:
            await appender.close()

    def read_upload(self, ledger: Sequence[Part], start: int, end: int) -> AsyncIterator[bytes]:
        """See `Storage.read_upload`."""
        return reading.read_upload(self._calls, self._memory, self._segments, ledger, start, end)

    async def concatenate(self, upload_id: UploadId, sources: Sequence[Sequence[Part]], *, epoch: int) -> Receipt:
        """See `Storage.concatenate`."""
        return await self._joiner.concatenate(upload_id, sources, epoch=epoch)

    async def complete(self, upload_id: UploadId, ledger: Sequence[Part], *, epoch: int) -> Stored:
        """See `Storage.complete`."""
        return await self._completer.complete(upload_id, ledger, epoch=epoch)

    async def discard(self, upload_id: str, *, finished: bool = False) -> None:
        """See `Storage.discard`."""
        name = naming.name_of(upload_id)
        self._segments.forget(name)
        await leftovers.remove(self._calls, name, spare=lambda key: not finished and naming.is_file(key))

    async def drop(self, upload_id: UploadId, keys: Sequence[str]) -> None:
        """See `Storage.drop`. Raises ValueError: a key of another upload, or of no object."""
        objects = [naming.object_in(key) for key in keys]
        if not all(naming.name_in(key) == naming.name_of(upload_id) for key in objects):
            raise ValueError("a key of another upload")
        await self._segments.drop(objects)

    async def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        await self._calls.delete(key)

    def held(self, *, older_than: float) -> AsyncIterator[Held]:
        """See `Storage.held`."""
        return leftovers.held(self._calls, older_than=older_than)

    def proxy_path(self, key: str) -> str | None:
        """See `Storage.proxy_path`."""
        return None

    async def signed_url(self, key: str, *, seconds: int, content_type: str, disposition: str) -> str | None:
        """See `Storage.signed_url`."""
        return await self._calls.signed_url(key, seconds=seconds, content_type=content_type, disposition=disposition)

    @asynccontextmanager
    async def open_file(self, key: str) -> AsyncIterator[reading.S3File]:
        """See `Storage.open_file`."""
        size = await self._calls.size(key)
        if size is None:
            raise StorageShort("the file is not there")
        yield reading.S3File(self._calls, self._memory, key, size)
