"""The Storage port over a bucket: wires the pieces together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Final

import structlog
from botocore.exceptions import BotoCoreError

from service.clock import Clock
from service.model import Part, UploadId
from service.storage.base import (
    Backing,
    Fence,
    Held,
    Keep,
    Observer,
    Receipt,
    StorageError,
    StorageShort,
    StorageUnavailable,
    Stored,
)
from service.storage.parts import part_size
from service.storage.s3 import examining, leftovers, naming, owning, reading
from service.storage.s3.advice import why
from service.storage.s3.appender import S3Appender
from service.storage.s3.calls import Calls, Watch
from service.storage.s3.client import S3Options, StoreRefused, answer_in
from service.storage.s3.completing import Completer
from service.storage.s3.joining import Joiner
from service.storage.s3.memory import Memory
from service.storage.s3.probing import remove_old, store_checks_checksums
from service.storage.s3.segments import Segments
from service.storage.threads import Threads

log = structlog.get_logger(__name__)

#: how long a start waits for the store
_START_SECONDS: Final = 5.0
#: between attempts to find the store, once a start has gone on without it
_FIRST_WAIT_SECONDS: Final = 2.0
_LONGEST_WAIT_SECONDS: Final = 30.0
#: how long `close` waits for a call of these; one that hangs ends by itself
_CLOSE_SECONDS: Final = 0.5


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
        owner: the identity of the database.
        settled: whether the database knows of bytes that must be there.
        watch: is told of every call to the store.
        threads: calls of a kind (with a body; reads; others) that run at once.
    """

    name = "s3"
    #: a file without a record could not be told there from one whose record was lost
    puts = False
    #: nothing but parts can be added
    extends = False

    def __init__(
        self,
        options: S3Options,
        clock: Clock,
        memory: Memory,
        *,
        most_bytes: int,
        part_bytes: int,
        owner: str,
        settled: bool,
        watch: Watch = _nobody,
        threads: int = 16,
    ) -> None:
        self._bucket = options.bucket
        self._clock = clock
        #: whether it is known what the store can
        self._known = False
        self._learning: asyncio.Task[None] | None = None
        self._owner = owner
        self._settled = settled
        #: whether the place was found to be this database's
        self._ours = False
        self._claiming = asyncio.Lock()
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

    async def open(self, *, look: bool = False) -> None:
        """See `Storage.open`. A store that is only away now does not keep the service from starting."""
        try:
            await self._workers.run(lambda: self._calls.connect(checksums=False))
        except (BotoCoreError, ValueError) as error:
            raise self._unusable(error) from None
        if look:
            await self._look()
            return
        learning = self._learning = asyncio.create_task(self._learn())
        await asyncio.wait({learning}, timeout=_START_SECONDS)
        reason = f"no answer within {_START_SECONDS:g} s"
        if learning.done():
            try:
                await learning
            except owning.NotOurs:
                raise
            except StoreRefused as error:
                raise self._unusable(answer_in(error)) from None
            except StorageError as error:
                reason = str(error)
            else:
                return
        log.warning("storage_away", reason=reason)
        self._learning = asyncio.create_task(self._learn_later(learning, reason))

    async def _look(self) -> None:
        """The bucket is there and this database's; nobody's is not claimed. Raises StorageError."""
        self._settled = True
        try:
            await self._calls.head_bucket()
            await self._own()
        except owning.NotOurs:
            raise
        except StoreRefused as error:
            raise self._unusable(answer_in(error)) from None

    def _unusable(self, error: Exception) -> StorageError:
        return StorageError(f"{why(error, bucket=self._bucket)} (`attachd doctor` tells more)")

    async def _learn_later(self, attempt: Awaitable[None], reason: str) -> None:
        """Returns when it is known what the store can. A reason that is new is logged: an operator may have to act."""
        wait = _FIRST_WAIT_SECONDS
        while True:
            try:
                await attempt
            except StorageError as error:
                if str(error) != reason:
                    reason = str(error)
                    log.warning("storage_away", reason=reason)
            else:
                return
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
            attempt = self._learn()

    async def _learn(self) -> None:
        """It is known what the store can. Raises StorageError: it is not."""
        await self._calls.head_bucket()
        try:
            await self._own()
            checked = await store_checks_checksums(self._calls)
        except KeyError as error:
            raise StoreRefused("what answers is no S3 store") from error
        await self._workers.run(lambda: self._calls.connect(checksums=checked))
        self._known = True
        log.info("storage_found", checksums="crc32c" if checked else "none")
        await remove_old(self._calls)

    async def close(self) -> None:
        """See `Storage.close`."""
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.wait({self._learning}, timeout=_CLOSE_SECONDS)
        self._calls.close()
        self._workers.close()

    async def probe(self) -> None:
        """See `Storage.probe`."""
        await self._calls.head_bucket()
        await self._own()
        if not self._known:
            raise StorageUnavailable("it is not known yet what the store can")

    async def _own(self, *, look: bool = False) -> None:
        """The place is this database's: for all that changes it, or would take bytes elsewhere for lost.

        A store that was away at the start is asked by whoever comes first.

        Args:
            look: ask, also where it was found to be ours: a new database that started at the same
                time may have claimed it as well.

        Raises:
            NotOurs, StorageUnavailable: see `owning.claim`.
        """
        if self._ours and not look:
            return
        async with self._claiming:
            if not self._ours or look:
                try:
                    await owning.claim(self._calls.once(), self._owner, settled=self._settled and not self._ours)
                except owning.NotOurs:
                    self._ours = False
                    raise
                self._ours = True

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
        keep: Keep | None = None,
    ) -> AsyncIterator[S3Appender]:
        """See `Storage.append`."""
        await self._own()
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
            keep=keep,
        )
        try:
            yield appender
        finally:
            await appender.close()

    async def read_upload(self, ledger: Sequence[Part], start: int, end: int) -> AsyncIterator[bytes]:
        """See `Storage.read_upload`."""
        await self._own()
        read = reading.read_upload(self._calls, self._memory, self._segments, ledger, start, end)
        # who stops early gives back what was taken for it at once
        async with aclosing(read) as pieces:
            async for piece in pieces:
                yield piece

    async def examine(self, upload_id: UploadId, ledger: Sequence[Part], *, older_than: float) -> Backing:
        """See `Storage.examine`. What no ledger names goes with the upload, and is not asked for."""
        await self._own()
        return Backing(await examining.backed(self._calls, upload_id, ledger))

    async def extend(
        self, upload_id: UploadId, ledger: Sequence[Part], data: memoryview, *, epoch: int
    ) -> Receipt | None:
        """See `Storage.extend`."""
        return None

    async def put(self, upload_id: UploadId, data: memoryview) -> Stored:
        """See `Storage.put`."""
        raise NotImplementedError("see `puts`")

    async def recorded(self, upload_ids: Sequence[UploadId]) -> None:
        """See `Storage.recorded`. There are no marks."""

    async def concatenate(self, upload_id: UploadId, sources: Sequence[Sequence[Part]], *, epoch: int) -> Receipt:
        """See `Storage.concatenate`."""
        await self._own()
        return await self._joiner.concatenate(upload_id, sources, epoch=epoch)

    async def complete(self, upload_id: UploadId, ledger: Sequence[Part], *, epoch: int) -> Stored:
        """See `Storage.complete`."""
        await self._own()
        return await self._completer.complete(upload_id, ledger, epoch=epoch)

    async def sync(self, ledger: Sequence[Part]) -> None:
        """See `Storage.sync`. The store is as durable as it is from the moment that it took a part."""

    async def discard(self, upload_id: str, *, finished: bool = False) -> None:
        """See `Storage.discard`."""
        await self._own()
        name = naming.name_of(upload_id)
        self._segments.forget(name)
        await leftovers.remove(self._calls, name, spare=lambda key: not finished and naming.is_file(key))

    async def drop(self, upload_id: UploadId, keys: Sequence[str]) -> None:
        """See `Storage.drop`. Raises ValueError: a key of another upload, or of no object."""
        objects = [naming.object_in(key) for key in keys]
        if not all(naming.name_in(key) == naming.name_of(upload_id) for key in objects):
            raise ValueError("a key of another upload")
        await self._own()
        await self._segments.drop(objects)

    async def delete(self, key: str) -> None:
        """See `Storage.delete`."""
        await self._own()
        await self._calls.delete(key)

    async def held(self, *, older_than: float) -> AsyncIterator[Held]:
        """See `Storage.held`."""
        await self._own(look=True)
        async for found in leftovers.held(self._calls, older_than=older_than):
            yield found

    def proxy_path(self, key: str) -> str | None:
        """See `Storage.proxy_path`."""
        return None

    async def signed_url(self, key: str, *, seconds: int, content_type: str, disposition: str) -> str | None:
        """See `Storage.signed_url`."""
        await self._own()
        return await self._calls.signed_url(key, seconds=seconds, content_type=content_type, disposition=disposition)

    @asynccontextmanager
    async def open_file(self, key: str) -> AsyncIterator[reading.S3File]:
        """See `Storage.open_file`."""
        await self._own()
        size = await self._calls.size(key)
        if size is None:
            raise StorageShort("the file is not there")
        yield reading.S3File(self._calls, self._memory, key, size)
