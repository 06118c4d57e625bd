"""What the S3 adapter's own tests are written in: adapters behind a faulty store, uploads as the service sends them."""

from __future__ import annotations

import contextlib
import functools
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import boto3.session
import botocore.session
import pytest

from service.clock import SystemClock, new_upload_id
from service.storage.base import Fence, Receipt, StorageError, Stored
from service.storage.s3 import Memory, S3Options, S3Storage, adapter, calls, client, owning
from tests.contract.storage_values import Ledger, committed
from tests.stores.calls import Call
from tests.stores.faults import Answer, Fault
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store

MIB = 2**20
#: the least that a store takes
PART = 5 * MIB
PREFIX = "some/where/"


_LOADER: Final = botocore.session.Session().get_component("data_loader")


class _Session(boto3.session.Session):
    """Shares the models of the API with all others: reading them takes longer than most tests."""

    def __init__(self, **arguments: Any) -> None:
        core: Any = botocore.session.Session()
        core.register_component("data_loader", _LOADER)
        super().__init__(botocore_session=core, **arguments)


@functools.lru_cache(maxsize=4)
def some_bytes(size: int, seed: int = 1) -> bytes:
    """As good as random, and the same each time."""
    return random.Random(seed).randbytes(size)


#: whether the store checks checksums, once an adapter has asked
_CHECKED: dict[Store, bool] = {}


class Bucket:
    """A bucket, the proxy before it, and the adapters that were opened there."""

    def __init__(self, store: Store, name: str, faulty: FaultyStore) -> None:
        self.store = store
        self.name = name
        self.faulty = faulty
        self._opened: list[S3Storage] = []

    async def adapter(
        self, *, memory: Memory | None = None, part_bytes: int = PART, direct: bool = False, asks: bool = False
    ) -> S3Storage:
        """Another adapter, as of another process; what it asked when it was opened is not counted.

        Args:
            direct: past the proxy.
            asks: finds out what the store can; else it may be told by one that asked before.
        """
        endpoint = self.store.endpoint if direct else self.faulty.endpoint
        storage = S3Storage(
            S3Options(self.name, endpoint, region=self.store.region, prefix=PREFIX, addressing="path"),
            SystemClock(),
            memory or Memory(96 * MIB),
            most_bytes=4 * 2**30,
            part_bytes=part_bytes,
            owner="test",
            settled=False,
        )
        self._opened.append(storage)
        with pytest.MonkeyPatch.context() as patch:
            if not asks and self.store in _CHECKED:
                patch.setattr(adapter, "store_checks_checksums", self._told)
            await storage.open()
        if not asks:
            _CHECKED[self.store] = storage._calls.checksums
        self.faulty.clear()
        return storage

    async def _told(self, _: calls.Calls) -> bool:
        return _CHECKED[self.store]

    async def close(self) -> None:
        """No adapter is open, and none has lost memory."""
        for storage in self._opened:
            await storage.close()
        for storage in self._opened:
            assert storage._memory.used == storage._memory._kept_bytes, "memory was not given back"

    def objects(self) -> dict[str, int]:
        """Key below the prefix, and size, of all there is but the mark of whose it is."""
        found = {key.removeprefix(PREFIX): size for key, size in self.store.objects(self.name).items()}
        found.pop(owning.OWNER, None)
        return found

    def tails(self) -> set[str]:
        """The tail segments there are."""
        return {key for key in self.objects() if "/tail." in key}

    def multiparts(self) -> list[tuple[str, str]]:
        """Key and UploadId of those that are unfinished."""
        return self.store.multiparts(self.name)

    def body(self, stored: Stored) -> bytes:
        """The finished file, read past the adapter."""
        found = self.store.client().get_object(Bucket=self.name, Key=PREFIX + stored.key)
        assert found["ContentLength"] == stored.size
        return found["Body"].read()

    def kinds(self) -> Counter[str]:
        """How many calls of each kind have come."""
        return Counter(str(call.kind) for call in self.faulty.calls)

    def calls(self, kind: str) -> list[Call]:
        """Those of a kind."""
        return [call for call in self.faulty.calls if call.kind == kind]


def share_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """All adapters of a test have one session: it takes long to make, and keeps nothing but models of the API."""
    monkeypatch.setattr(boto3.session, "Session", functools.cache(_Session))


@contextlib.asynccontextmanager
async def bucket_of(
    store: Store, name: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bucket]:
    """The bucket, for adapters that have the store's keys and are too busy to wait before they try again."""
    for variable, value in store.environment().items():
        monkeypatch.setenv(variable, value)
    share_models(monkeypatch)
    # a client keeps nothing but connections from one adapter to the next
    monkeypatch.setattr(calls, "make_client", functools.cache(client.make_client))
    monkeypatch.setattr(calls, "_FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(calls, "_LONGEST_WAIT_SECONDS", 0.01)
    made = Bucket(store, name, faulty)
    yield made
    faulty.clear()
    await made.close()


def give_up_soon(monkeypatch: pytest.MonkeyPatch, seconds: float = 1.0) -> None:
    """Adapters that are opened from now on wait no longer for an answer, nor try again after it did not come."""
    monkeypatch.setattr(client, "_READ_SECONDS", seconds)
    monkeypatch.setattr(client, "_ASSEMBLY_SECONDS", seconds)
    monkeypatch.setattr(calls, "make_client", functools.cache(client.make_client))
    monkeypatch.setattr(calls, "_PATIENCE_SECONDS", seconds / 2)


def forget_tails(storage: S3Storage) -> None:
    """Nothing of what was stored is at hand, as if another process went on."""
    memory = storage._memory
    for key in list(memory._kept):
        memory.forget(key)


class Upload:
    """An upload as the service drives it: a request, its commit, then the drop. Only the ledger outlives a request."""

    def __init__(self, data: bytes) -> None:
        self.upload_id = new_upload_id()
        self.data = data
        self.ledger: Ledger = ()
        #: of the last committed receipt
        self.drop: Sequence[str] = ()

    @property
    def offset(self) -> int:
        """Bytes committed."""
        return self.ledger[-1].end if self.ledger else 0

    @property
    def name(self) -> str:
        """What it is called in the bucket."""
        return self.upload_id[:15]

    def commit(self, receipt: Receipt) -> None:
        """The receipt is in the ledger, which never gets shorter and has no gaps (lesson O1)."""
        before = self.offset
        self.ledger = committed(self.ledger, receipt)
        assert self.offset >= before
        self.drop = receipt.drop

    async def request(
        self,
        storage: S3Storage,
        size: int | None = None,
        *,
        last: bool = False,
        epoch: int = 1,
        fence: Fence | None = None,
        drop: bool = True,
    ) -> None:
        """So many of the bytes that lack, or all, are committed; where storage fails, those that are held are."""
        end = len(self.data) if size is None else self.offset + size
        async with storage.append(self.upload_id, self.ledger, epoch=epoch, align=1, fence=fence) as appender:
            try:
                for at in range(self.offset, end, MIB):
                    await appender.write(memoryview(self.data)[at : min(at + MIB, end)])
                receipt = await appender.flush(last=last)
            except StorageError:
                self.commit(await appender.held())
                raise
            self.commit(receipt)
        if drop:
            await storage.drop(self.upload_id, self.drop)

    async def complete(self, storage: S3Storage, *, epoch: int = 1) -> Stored:
        """The finished file, of the right size."""
        stored = await storage.complete(self.upload_id, self.ledger, epoch=epoch)
        assert stored.size == self.offset
        return stored

    def without(self, count: int) -> Upload:
        """The same upload as it was known before its last pieces were committed."""
        earlier = Upload(self.data)
        earlier.upload_id, earlier.ledger = self.upload_id, self.ledger[: len(self.ledger) - count]
        return earlier


class Waits(Fault):
    """Another fault, once a test's condition holds."""

    def __init__(self, inner: Fault, condition: Any) -> None:
        self._inner = inner
        self._condition = condition
        self.cut_request_after = inner.cut_request_after
        self.takes_over = inner.takes_over

    def arrived(self, call: Call) -> None:
        """See `Fault.arrived`."""
        self._condition()
        self._inner.arrived(call)

    def answer(self, call: Call) -> Answer:
        """See `Fault.answer`."""
        return self._inner.answer(call)

    def answered(self, call: Call) -> None:
        """See `Fault.answered`."""
        self._inner.answered(call)

    def release(self) -> None:
        """See `Fault.release`."""
        self._inner.release()
