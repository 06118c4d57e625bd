"""What the storage contract suite is written in: ledgers, requests, reads, and the hooks of an adapter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence

from service.clock import new_upload_id
from service.model import Part, UploadId
from service.storage.base import Receipt, Storage, Stored

Ledger = tuple[Part, ...]

#: of every append, unless a test is about it
ALIGN = 8 * 2**20


def committed(ledger: Sequence[Part], receipt: Receipt) -> Ledger:
    """The ledger once the receipt is committed, held against what the port says of both."""
    merged = tuple(ledger)
    if receipt.parts:
        merged = (*(part for part in ledger if part.number < receipt.parts[0].number), *receipt.parts)
    numbers = [part.number for part in merged]
    assert numbers == sorted(set(numbers)), "parts are told in order"
    reached = 0
    for part in merged:
        assert part.start == reached, "a ledger has no gaps"
        assert part.end > part.start, "a part has bytes"
        reached = part.end
    assert reached == receipt.offset, "a receipt's offset is the end of its ledger"
    assert not {part.key for part in merged} & set(receipt.drop), "nothing is dropped that the ledger names"
    return merged


async def appended(
    storage: Storage, upload_id: UploadId, ledger: Ledger, *pieces: bytes, epoch: int = 1, last: bool = False
) -> Ledger:
    """The ledger after one request that wrote the pieces and committed them."""
    async with storage.append(upload_id, ledger, epoch=epoch, align=ALIGN) as appender:
        for piece in pieces:
            await appender.write(memoryview(piece))
        receipt = await appender.flush(last=last)
    await storage.drop(upload_id, receipt.drop)
    return committed(ledger, receipt)


async def uncommitted(storage: Storage, upload_id: UploadId, ledger: Ledger, data: bytes, *, epoch: int = 1) -> Receipt:
    """A request that was held and never committed."""
    async with storage.append(upload_id, ledger, epoch=epoch, align=ALIGN) as appender:
        await appender.write(memoryview(data))
        return await appender.flush(last=False)


async def gathered(pieces: AsyncIterator[bytes]) -> bytes:
    """All pieces as one."""
    return b"".join([piece async for piece in pieces])


async def unfinished(storage: Storage, ledger: Ledger) -> bytes:
    """What the ledger reads."""
    return await gathered(storage.read_upload(ledger, 0, ledger[-1].end if ledger else 0))


async def content(storage: Storage, stored: Stored) -> bytes:
    """What the finished file reads; its size agrees with the receipt for it."""
    async with storage.open_file(stored.key) as file:
        assert file.size == stored.size
        return await gathered(file.read(0, file.size))


async def finished(storage: Storage, data: bytes, upload_id: UploadId | None = None) -> Stored:
    """A finished file of the upload, or of a new one, with those bytes."""
    upload_id = upload_id or new_upload_id()
    ledger = await appended(storage, upload_id, (), data, last=True)
    return await storage.complete(upload_id, ledger, epoch=1)


class StorageHooks(ABC):
    """What a subclass of the suite says about its store."""

    def name_of(self, upload_id: UploadId) -> str:
        """Storage's name of the upload."""
        return upload_id

    @abstractmethod
    async def reopened(self, storage: Storage) -> Storage:
        """Another, opened instance on the same store, as after a restart. The subclass closes it."""

    @abstractmethod
    async def shorten(self, storage: Storage, part: Part) -> None:
        """The last byte of the part is lost behind the adapter's back."""

    @abstractmethod
    async def age(self, storage: Storage, seconds: float) -> None:
        """All that is held now was last changed so much earlier."""
