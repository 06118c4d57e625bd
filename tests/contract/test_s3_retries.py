"""Each kind of call to the store goes wrong in each passing way, and whoever asked the adapter never notices."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Final

import pytest

from service.storage.base import StorageUnavailable
from service.storage.s3 import S3Storage, calls, client
from tests.contract.buckets import MIB, PART, Bucket, Upload, bucket_of, forget_tails, some_bytes
from tests.contract.storage_values import content
from tests.stores.calls import Kind
from tests.stores.faults import Fault, cut_reply, cut_request, delay, hang, lose_reply, slow_down, status
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store

_READ_SECONDS: Final = 0.5


@pytest.fixture
async def s3(store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    async with bucket_of(store, bucket, faulty, monkeypatch) as made:
        # an answer that does not come is soon waited for no more, and asked for again all the same
        monkeypatch.setattr(client, "_READ_SECONDS", _READ_SECONDS)
        monkeypatch.setattr(client, "_ASSEMBLY_SECONDS", 2 * _READ_SECONDS)
        monkeypatch.setattr(calls, "make_client", functools.cache(client.make_client))
        yield made


# what is done, and what must have come of it

Work = Callable[[Bucket, S3Storage], Awaitable[None]]


async def _small(s3: Bucket, storage: S3Storage) -> None:
    upload = Upload(some_bytes(1000))
    await upload.request(storage, last=True)
    assert await content(storage, await upload.complete(storage)) == upload.data


async def _large(s3: Bucket, storage: S3Storage) -> None:
    upload = Upload(some_bytes(PART + MIB))
    await upload.request(storage, MIB)
    forget_tails(storage)
    await upload.request(storage, last=True)
    assert await content(storage, await upload.complete(storage, epoch=2)) == upload.data
    assert len(s3.objects()) == 1


async def _joined(s3: Bucket, storage: S3Storage) -> None:
    sources = [Upload(some_bytes(PART + MIB, seed=2)), Upload(some_bytes(7, seed=3))]
    for source in sources:
        await source.request(storage, last=True)
    joined = Upload(b"".join(source.data for source in sources))
    joined.commit(await storage.concatenate(joined.upload_id, [source.ledger for source in sources], epoch=1))
    assert await content(storage, await joined.complete(storage)) == joined.data


async def _discarded(s3: Bucket, storage: S3Storage) -> None:
    upload = Upload(some_bytes(PART + MIB))
    await upload.request(storage)
    await storage.discard(upload.upload_id)
    assert not s3.objects()


#: of which kinds of call there is at least one
WORK: dict[Kind, Work] = {
    "put_object": _small,
    "get_object": _large,
    "head_object": _large,
    "delete_object": _large,
    "list_objects": _large,
    "list_multipart_uploads": _large,
    "create_multipart_upload": _large,
    "upload_part": _large,
    "upload_part_copy": _joined,
    "abort_multipart_upload": _discarded,
}
WAYS: dict[str, Callable[[], Fault]] = {
    "500": lambda: status(500),
    "SlowDown": slow_down,
    "time-out": hang,
    "cut": lambda: cut_request(1000),
    "reply lost": lose_reply,
    "reply cut": lambda: cut_reply(10),
}
#: whose replies have a body that can be cut
TOLD: Final = {
    "get_object", "list_objects", "list_multipart_uploads", "create_multipart_upload", "upload_part_copy",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "way"), [(kind, way) for kind in WORK for way in WAYS if way != "reply cut" or kind in TOLD]
)
async def test_a_call_that_goes_wrong_twice_is_made_again(s3: Bucket, kind: Kind, way: str) -> None:
    """Two failures in passing cost two more calls, and nothing else."""
    storage = await s3.adapter()
    s3.faulty.fault(kind, times=2, what=WAYS[way]())
    await WORK[kind](s3, storage)

    assert s3.kinds()[kind] >= 3


@pytest.mark.parametrize("way", WAYS)
async def test_a_completion_that_goes_wrong_is_answered_by_looking(s3: Bucket, way: str) -> None:
    """CompleteMultipartUpload goes wrong once: it is made again, or found to be done; twice is worth a retry."""
    storage = await s3.adapter()
    s3.faulty.fault("complete_multipart_upload", what=WAYS[way]())
    await _large(s3, storage)

    upload = Upload(some_bytes(PART + MIB))
    await upload.request(storage, last=True)
    s3.faulty.fault("complete_multipart_upload", times=2, what=WAYS[way]())
    with suppress(StorageUnavailable):
        await upload.complete(storage)
    assert s3.body(await upload.complete(storage)) == upload.data


@pytest.mark.parametrize(("kind", "work"), [("complete_multipart_upload", _large), ("upload_part_copy", _joined)])
async def test_a_store_that_puts_an_object_together_has_time(s3: Bucket, kind: Kind, work: Work) -> None:
    """What makes the store copy all bytes is waited for longer than others, not begun again beside itself."""
    storage = await s3.adapter()
    s3.faulty.fault(kind, times=None, what=delay(1.4 * _READ_SECONDS))
    await work(s3, storage)
    assert s3.kinds()[kind] == 1


@pytest.mark.parametrize("way", [way for way in WAYS if way != "reply cut"])
async def test_a_look_at_the_bucket_is_told_at_once(s3: Bucket, way: str) -> None:
    """HeadBucket answers /readyz, which wants to know now: it is made once, and the next one may do better."""
    storage = await s3.adapter()
    s3.faulty.fault("head_bucket", what=WAYS[way]())
    with pytest.raises(StorageUnavailable):
        await storage.probe()
    assert s3.kinds()["head_bucket"] == 1
    await storage.probe()
