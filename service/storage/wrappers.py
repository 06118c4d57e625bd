"""The Storage port around any Storage: what a wrapper adds, no adapter needs to know."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from service.storage.base import (
    Appender,
    Backing,
    Fence,
    Held,
    Keep,
    Observer,
    Receipt,
    Storage,
    StorageFull,
    StorageShort,
    StorageStale,
    StorageUnavailable,
    Stored,
    StoredFile,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from service.clock import Clock
    from service.metrics import Metrics, StorageOperation, StorageOutcome
    from service.model import Part, UploadId


def _outcome(error: BaseException) -> StorageOutcome:
    match error:
        case StorageFull():
            return "full"
        case StorageUnavailable():
            return "unavailable"
        case StorageShort():
            return "short"
        case StorageStale():
            return "stale"
        case asyncio.CancelledError():
            return "cancelled"
        case _:
            return "error"


class _Meter:
    """Counts and times the calls to one backend."""

    def __init__(self, backend: str, metrics: Metrics, clock: Clock) -> None:
        self._backend = backend
        self._metrics = metrics
        self._clock = clock

    @contextmanager
    def call(self, operation: StorageOperation) -> Iterator[None]:
        """One call: what happens inside."""
        began = self._clock.monotonic()
        outcome: StorageOutcome = "ok"
        try:
            yield
        except BaseException as error:
            outcome = _outcome(error)
            raise
        finally:
            self._metrics.storage_request(self._backend, operation, outcome, self._clock.monotonic() - began)

    async def pieces(self, source: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The source's pieces, each a call of its own: a slow consumer is not storage's time."""
        try:
            while True:
                with self.call("read"):
                    piece = await anext(source, None)
                if piece is None:
                    return
                yield piece
        finally:
            # a consumer that stops early must not leave the adapter's file open
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()


class _MeteredAppender:
    def __init__(self, appender: Appender, meter: _Meter) -> None:
        self._appender = appender
        self._meter = meter

    async def write(self, data: memoryview, *, last: bool = False) -> None:
        with self._meter.call("write"):
            await self._appender.write(data, last=last)

    async def held(self) -> Receipt:
        return await self._appender.held()

    async def flush(self, *, last: bool) -> Receipt:
        with self._meter.call("flush"):
            return await self._appender.flush(last=last)


class _MeteredFile:
    def __init__(self, file: StoredFile, meter: _Meter) -> None:
        self.size = file.size
        self._file = file
        self._meter = meter

    @property
    def fd(self) -> int | None:
        return self._file.fd

    def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        return self._meter.pieces(self._file.read(start, end))


class MeteredStorage:
    """A Storage whose calls are counted and timed by operation and outcome.

    `close`, `signed_url` and an appender's `held` are not: they ask nothing of the backend. Nor is
    the listing `held`, whose time is mostly its consumer's, nor `examine`, which serves commands
    alone. Bytes that the kernel sends from `StoredFile.fd` are not seen here.
    """

    def __init__(self, inner: Storage, metrics: Metrics, clock: Clock) -> None:
        self.name = inner.name
        self._inner = inner
        self._meter = _Meter(inner.name, metrics, clock)

    @property
    def puts(self) -> bool:
        """See Storage."""
        return self._inner.puts

    @property
    def extends(self) -> bool:
        """See Storage."""
        return self._inner.extends

    async def open(self, *, look: bool = False) -> None:
        """See Storage."""
        with self._meter.call("open"):
            await self._inner.open(look=look)

    async def close(self) -> None:
        """See Storage."""
        await self._inner.close()

    async def probe(self) -> None:
        """See Storage."""
        with self._meter.call("probe"):
            await self._inner.probe()

    async def free_bytes(self) -> int | None:
        """See Storage."""
        with self._meter.call("free_bytes"):
            return await self._inner.free_bytes()

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
    ) -> AsyncIterator[Appender]:
        """See Storage."""
        async with self._inner.append(
            upload_id, ledger, epoch=epoch, align=align, observe=observe, fence=fence, keep=keep
        ) as appender:
            yield _MeteredAppender(appender, self._meter)

    def read_upload(self, ledger: Sequence[Part], start: int, end: int) -> AsyncIterator[bytes]:
        """See Storage."""
        return self._meter.pieces(self._inner.read_upload(ledger, start, end))

    async def examine(self, upload_id: UploadId, ledger: Sequence[Part], *, older_than: float) -> Backing:
        """See Storage."""
        return await self._inner.examine(upload_id, ledger, older_than=older_than)

    async def extend(
        self, upload_id: UploadId, ledger: Sequence[Part], data: memoryview, *, epoch: int
    ) -> Receipt | None:
        """See Storage."""
        with self._meter.call("write"):
            return await self._inner.extend(upload_id, ledger, data, epoch=epoch)

    async def put(self, upload_id: UploadId, data: memoryview) -> Stored:
        """See Storage."""
        with self._meter.call("put"):
            return await self._inner.put(upload_id, data)

    async def recorded(self, upload_ids: Sequence[UploadId]) -> None:
        """See Storage."""
        with self._meter.call("recorded"):
            await self._inner.recorded(upload_ids)

    async def concatenate(self, upload_id: UploadId, sources: Sequence[Sequence[Part]], *, epoch: int) -> Receipt:
        """See Storage."""
        with self._meter.call("concatenate"):
            return await self._inner.concatenate(upload_id, sources, epoch=epoch)

    async def complete(self, upload_id: UploadId, ledger: Sequence[Part], *, epoch: int) -> Stored:
        """See Storage."""
        with self._meter.call("complete"):
            return await self._inner.complete(upload_id, ledger, epoch=epoch)

    async def sync(self, ledger: Sequence[Part]) -> None:
        """See Storage."""
        with self._meter.call("sync"):
            await self._inner.sync(ledger)

    async def discard(self, upload_id: str, *, finished: bool = False) -> None:
        """See Storage."""
        with self._meter.call("discard"):
            await self._inner.discard(upload_id, finished=finished)

    async def drop(self, upload_id: UploadId, keys: Sequence[str]) -> None:
        """See Storage."""
        with self._meter.call("drop"):
            await self._inner.drop(upload_id, keys)

    async def delete(self, key: str) -> None:
        """See Storage."""
        with self._meter.call("delete"):
            await self._inner.delete(key)

    def held(self, *, older_than: float) -> AsyncIterator[Held]:
        """See Storage."""
        return self._inner.held(older_than=older_than)

    def proxy_path(self, key: str) -> str | None:
        """See Storage."""
        return self._inner.proxy_path(key)

    async def signed_url(self, key: str, *, seconds: int, content_type: str, disposition: str) -> str | None:
        """See Storage."""
        return await self._inner.signed_url(key, seconds=seconds, content_type=content_type, disposition=disposition)

    def open_file(self, key: str) -> AbstractAsyncContextManager[StoredFile]:
        """See Storage."""
        return self._open_file(key)

    @asynccontextmanager
    async def _open_file(self, key: str) -> AsyncIterator[StoredFile]:
        async with AsyncExitStack() as stack:
            with self._meter.call("open_file"):
                file = await stack.enter_async_context(self._inner.open_file(key))
            yield _MeteredFile(file, self._meter)
