"""The S3 adapter: the shared suite on each kind of store, then what is particular to a bucket."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest

from service.clock import SystemClock, new_upload_id
from service.model import Part, UploadId
from service.storage.base import Storage, StorageShort
from service.storage.s3 import Memory, S3Options, S3Storage
from tests.contract.buckets import share_models
from tests.contract.storage import StorageContract
from tests.contract.storage_values import appended
from tests.stores.servers import Store

MIB = 2**20


def options_of(store: Store, bucket: str, endpoint: str | None = None, prefix: str = "some/where/") -> S3Options:
    """How the bucket is reached, directly or through a proxy."""
    return S3Options(bucket, endpoint or store.endpoint, region=store.region, prefix=prefix, addressing="path")


async def make(
    store: Store, bucket: str, *, endpoint: str | None = None, part_bytes: int = 5 * MIB, memory: Memory | None = None
) -> S3Storage:
    """An opened adapter on the bucket."""
    storage = S3Storage(
        options_of(store, bucket, endpoint),
        SystemClock(),
        memory or Memory(96 * MIB),
        most_bytes=4 * 2**30,
        part_bytes=part_bytes,
        owner="test",
        settled=False,
    )
    await storage.open()
    return storage


class TestS3(StorageContract):
    """Each store in turn, below a prefix."""

    @pytest.fixture
    async def storage(self, any_store: Store, bucket: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Storage]:
        for name, value in any_store.environment().items():
            monkeypatch.setenv(name, value)
        share_models(monkeypatch)
        self._store, self._bucket = any_store, bucket
        self._open = [await make(any_store, bucket)]
        yield self._open[0]
        for storage in self._open:
            await storage.close()
        # pytest keeps this object to the end of the run; the clients in it would be a gigabyte then
        self._open.clear()

    def name_of(self, upload_id: UploadId) -> str:
        return upload_id[:15]

    async def reopened(self, storage: Storage) -> Storage:
        self._open.append(await make(self._store, self._bucket))
        return self._open[-1]

    async def shorten(self, storage: Storage, part: Part) -> None:
        client = self._store.client()
        key = re.sub("^o:", "some/where/", part.key)
        body = client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        client.put_object(Bucket=self._bucket, Key=key, Body=body[:-1])
        # what this process still has in memory would hide the loss
        storage._memory.forget(part.key.removeprefix("o:"))  # type: ignore[attr-defined]

    async def age(self, storage: Storage, seconds: float) -> None:
        self._store.age(self._bucket, seconds)

    async def test_an_append_to_lost_bytes_is_short(self, storage: Storage) -> None:
        """Lost bytes are found missing when their part is made: a look at each append would cost a call."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        await self.shorten(storage, ledger[-1])

        with pytest.raises(StorageShort):
            await appended(storage, upload_id, ledger, b"def", epoch=2, last=True)
