"""Damage, and writers that slept too long, never get into a file in the bucket (O7, L2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from botocore.auth import S3SigV4Auth

from service.storage.base import StorageError, StorageShort, StorageStale
from service.storage.s3 import S3Storage
from service.storage.s3.chunks import digest_of
from tests.contract.buckets import MIB, PART, PREFIX, Bucket, Upload, bucket_of, forget_tails, some_bytes
from tests.contract.storage_values import gathered, unfinished
from tests.stores.calls import Call
from tests.stores.faults import Answer, Fault, damage, hold
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store


@pytest.fixture
async def s3(store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    async with bucket_of(store, bucket, faulty, monkeypatch) as made:
        yield made


# damage


async def test_o7_the_ledger_has_a_digest_of_every_piece(s3: Bucket) -> None:
    """O7: Parts, tail segments and the last part each come with the digest of their own bytes."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(2 * PART + MIB))
    seen = set()
    for size in (PART + 7, 2 * MIB, 2 * MIB, None):
        await upload.request(storage, size, last=size is None)
        seen |= {(part.start, part.end, part.key[0]) for part in upload.ledger}
        for part in upload.ledger:
            assert part.digest == digest_of(upload.data[part.start : part.end])

    assert len(seen) == 6, "two full parts, three segments, and the last part"


def _flip_a_bit(s3: Bucket, key: str) -> None:
    client = s3.store.client()
    body = bytearray(client.get_object(Bucket=s3.name, Key=PREFIX + key)["Body"].read())
    body[len(body) // 2] ^= 1
    client.put_object(Bucket=s3.name, Key=PREFIX + key, Body=bytes(body))


async def _go_on(storage: S3Storage, upload: Upload) -> None:
    await upload.request(storage)


async def _end(storage: S3Storage, upload: Upload) -> None:
    await upload.complete(storage)


async def _read(storage: S3Storage, upload: Upload) -> None:
    await unfinished(storage, upload.ledger)


@pytest.mark.parametrize("use", [_go_on, _end, _read])
async def test_o7_a_segment_damaged_at_rest_is_never_used(
    s3: Bucket, use: Callable[[S3Storage, Upload], Awaitable[None]]
) -> None:
    """O7: Of a segment in which one bit was flipped in the bucket nothing is read, joined or finished: it is short."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(PART))
    await upload.request(storage, MIB)
    _flip_a_bit(s3, *s3.tails())
    forget_tails(storage)

    with pytest.raises(StorageShort):
        await use(storage, upload)
    assert s3.objects().keys() == s3.tails(), "nothing was made of it"


async def test_o7_only_tails_are_read_back(s3: Bucket) -> None:
    """O7: From the first byte to the finished file no part is read, and a segment once, where it is not at hand."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(2 * PART + MIB))
    for _ in range(11):
        forget_tails(storage)
        await upload.request(storage, MIB)
    forget_tails(storage)
    await upload.complete(storage)
    read = [call.key for call in s3.calls("get_object")]

    assert read
    assert len(set(read)) == len(read)
    assert all("/tail." in key for key in read)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "checksum alone"])
@pytest.mark.parametrize("kind", ["upload_part", "put_object"])
async def test_o7_a_body_damaged_on_its_way_is_refused_and_sent_again(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch, kind: str, signed: bool
) -> None:
    """O7: A bit flipped on the way, also where only the CRC-32C shows it, as over TLS, is not in the file."""
    if s3.store.kind == "moto":
        pytest.skip("moto looks at no checksum")
    if not signed:
        # over TLS bodies that have a checksum of their own are not signed; the test store has no TLS
        monkeypatch.setattr(S3SigV4Auth, "_should_sha256_sign_payload", lambda *_: False)
    storage = await s3.adapter()
    assert storage._calls.checksums
    upload = Upload(some_bytes(PART + MIB))
    s3.faulty.fault(kind, what=damage(MIB - 7))  # type: ignore[arg-type]
    await upload.request(storage)
    stored = await upload.complete(storage)

    statuses = [call.status for call in s3.calls(kind)]
    assert statuses[:2] == [400, 200]
    assert s3.body(stored) == upload.data


async def test_a_ranged_read_of_the_end_of_a_tail_is_right(s3: Bucket) -> None:
    """A range inside the segments reads as it was written, from a process that has none at hand."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(3000))
    for _ in range(3):
        await upload.request(storage, 1000)
    forget_tails(storage)

    assert await gathered(storage.read_upload(upload.ledger, 999, 2500)) == upload.data[999:2500]


# writers that slept too long


class Fails(Fault):
    """The call never reaches the store, and fails with a 500 once the inner fault lets it."""

    takes_over = True

    def __init__(self, inner: Fault) -> None:
        self._inner = inner

    def answer(self, call: Call) -> Answer:
        """See `Fault.answer`."""
        self._inner.arrived(call)
        return Answer(500)

    def release(self) -> None:
        """See `Fault.release`."""
        self._inner.release()


async def _lease() -> None:
    """It holds."""


async def test_l2_a_stale_part_makes_the_end_fail_and_never_a_mix(s3: Bucket) -> None:
    """L2: A part of an overtaken writer that lands on a committed one of other content: short, and no file is made."""
    storage, other = await s3.adapter(), await s3.adapter()
    upload = Upload(some_bytes(2 * PART))
    await upload.request(storage, PART, epoch=1)
    stale = upload.without(0)
    stale.data = some_bytes(2 * PART, seed=2)
    held = hold()
    s3.faulty.fault("upload_part", part_number=2, what=held)
    asleep = asyncio.ensure_future(stale.request(storage, last=True, fence=_lease))
    await asyncio.to_thread(held.caught)

    await upload.request(other, last=True, epoch=2)
    held.release()
    await asyncio.wait({asleep})
    with pytest.raises(StorageShort):
        await upload.complete(other, epoch=2)
    assert not s3.objects()


async def test_l2_a_stale_part_of_the_same_bytes_does_no_harm(s3: Bucket) -> None:
    """L2: An overtaken writer that sends what its successor sent, later, spoils nothing."""
    storage, other = await s3.adapter(), await s3.adapter()
    upload = Upload(some_bytes(2 * PART))
    await upload.request(storage, PART, epoch=1)
    stale = upload.without(0)
    held = hold()
    s3.faulty.fault("upload_part", part_number=2, what=held)
    asleep = asyncio.ensure_future(stale.request(storage, last=True))
    await asyncio.to_thread(held.caught)

    await upload.request(other, last=True, epoch=2)
    held.release()
    await asyncio.wait({asleep})
    assert s3.body(await upload.complete(other, epoch=2)) == upload.data


@pytest.mark.parametrize("size", [PART, 1000], ids=["a part", "a tail"])
async def test_l2_a_fenced_writer_that_was_overtaken_writes_nothing(s3: Bucket, size: int) -> None:
    """L2: A writer that wakes up after it was overtaken finds its lease gone before it sends a part or a segment."""
    storage, other = await s3.adapter(), await s3.adapter()
    upload = Upload(some_bytes(2 * PART))
    await upload.request(storage, PART)
    overtaken = False

    async def fence() -> None:
        if overtaken:
            raise StorageStale("the lease was lost")

    async with storage.append(upload.upload_id, upload.ledger, epoch=1, align=1, fence=fence) as asleep:
        await asleep.write(memoryview(bytes(size)))
        overtaken = True
        await upload.request(other, last=True, epoch=2)
        s3.faulty.clear()
        with pytest.raises(StorageStale):
            await asleep.flush(last=False)
    kinds = s3.kinds()

    assert not kinds["upload_part"] + kinds["put_object"]
    assert s3.body(await upload.complete(other, epoch=2)) == upload.data


async def test_l2_a_part_is_not_tried_again_after_a_take_over(s3: Bucket) -> None:
    """L2: A writer whose first attempt at a part failed finds its lease gone before the next, and replaces nothing."""
    storage, other = await s3.adapter(), await s3.adapter()
    upload = Upload(some_bytes(3 * PART))
    await upload.request(storage, PART + 10)
    stale = upload.without(0)
    stale.data = upload.data[: PART + 10] + some_bytes(2 * PART - 10, seed=2)
    overtaken = False

    async def fence() -> None:
        if overtaken:
            raise StorageStale("the lease was lost")

    answered = hold()
    s3.faulty.fault("upload_part", part_number=2, what=Fails(answered))
    asleep = asyncio.ensure_future(stale.request(storage, PART - 10, fence=fence))
    await asyncio.to_thread(answered.caught)
    overtaken = True
    await upload.request(other, last=True, epoch=2)
    answered.release()
    await asyncio.wait({asleep})

    assert isinstance(asleep.exception(), StorageStale)
    assert s3.body(await upload.complete(other, epoch=3)) == upload.data


async def test_l2_a_first_writer_that_slept_leaves_the_successor_alone(s3: Bucket) -> None:
    """L2: An overtaken writer's multipart upload and segments are its own; the file is its successor's."""
    storage, other = await s3.adapter(), await s3.adapter()
    upload = Upload(some_bytes(PART + MIB))
    stale = upload.without(0)
    stale.data = some_bytes(PART + MIB, seed=2)
    held = hold()
    s3.faulty.fault("upload_part", what=held)
    asleep = asyncio.ensure_future(stale.request(storage))
    await asyncio.to_thread(held.caught)

    await upload.request(other, epoch=2)
    held.release()
    await asyncio.wait({asleep})
    assert asleep.exception() is None or isinstance(asleep.exception(), StorageError)
    stored = await upload.complete(other, epoch=2)
    assert s3.body(stored) == upload.data
    assert s3.objects() == {stored.key: stored.size}
    assert not s3.multiparts()
