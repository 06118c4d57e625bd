"""Which parts an S3 upload is made of, however its bytes come, and what that costs (O3, O4, O5)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from service.storage.s3 import Memory
from tests.contract.buckets import MIB, PART, Bucket, Upload, bucket_of, forget_tails, some_bytes
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store


@pytest.fixture
async def s3(store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    async with bucket_of(store, bucket, faulty, monkeypatch) as made:
        yield made


#: larger than the least part, so that the borders of both are met
LARGER = PART + MIB
SIZES = (0, 1, PART - 1, PART, PART + 1, LARGER - 1, LARGER, LARGER + 1, 2 * LARGER, 2 * LARGER + 1)


@pytest.mark.parametrize(
    ("request_bytes", "known"),
    [(2**30, True), (2**30, False), (3 * MIB + 1, False)],
    ids=["one, known", "one, deferred", "many, deferred"],
)
@pytest.mark.parametrize("size", SIZES)
async def test_o3_every_size_becomes_that_file(s3: Bucket, size: int, request_bytes: int, known: bool) -> None:
    """O3: Around each border, in one request or many, length known or told at the end: size and content are right."""
    storage = await s3.adapter(part_bytes=LARGER)
    upload = Upload(some_bytes(size))
    while upload.offset < size:
        left = size - upload.offset
        await upload.request(storage, min(left, request_bytes), last=known and left <= request_bytes)
    await upload.request(storage, 0, last=True)
    stored = await upload.complete(storage)

    assert s3.body(stored) == upload.data
    assert s3.objects() == {stored.key: size}
    assert not s3.multiparts()


async def test_o3_smaller_parts_go_on_with_an_upload_of_larger_tails(s3: Bucket) -> None:
    """O3: Tails of a first part that was to be 12 MiB are not cut again when parts are to be 5 MiB: no gap, no loss."""
    before, after = await s3.adapter(part_bytes=12 * MIB), await s3.adapter(part_bytes=PART)
    upload = Upload(some_bytes(20 * MIB))
    for _ in range(2):
        await upload.request(before, 5 * MIB + 512 * 2**10)
    assert [part.key[0] for part in upload.ledger] == ["o", "o"]
    forget_tails(after)
    for size in (2 * MIB, None):
        await upload.request(after, size, last=size is None)
    stored = await upload.complete(after)

    assert s3.body(stored) == upload.data
    assert upload.ledger[0].end == 11 * MIB
    assert s3.objects() == {stored.key: len(upload.data)}


ODD = 123


@pytest.mark.parametrize("known", [True, False], ids=["known", "deferred"])
@pytest.mark.parametrize(
    "requests",
    [[1] * 20 + [2 * MIB] * 99, [PART - 1] * 99, [7 * MIB] * 99, [2**30]],
    ids=["1 B, then 2 MiB", "part - 1", "7 MiB", "everything"],
)
async def test_o4_requests_leave_no_trace_in_the_parts(s3: Bucket, requests: list[int], known: bool) -> None:
    """O4: Whatever the requests, the parts that become the file are three equal ones and the rest; R2 takes them."""
    s3.faulty.equal_parts = True
    storage = await s3.adapter()
    upload = Upload(some_bytes(3 * PART + ODD))
    for request in requests:
        left = len(upload.data) - upload.offset
        if left:
            await upload.request(storage, min(left, request), last=known and left <= request)
    stored = await upload.complete(storage)

    named = {call.part_number: call.bytes_sent for call in s3.calls("upload_part") if call.status == 200}
    assert named == {1: PART, 2: PART, 3: PART, 4: ODD}
    assert len(s3.calls("upload_part")) == 4, "no part went up twice"
    assert s3.body(stored) == upload.data


def _put(s3: Bucket) -> int:
    """Bytes that were sent to the store."""
    return sum(call.bytes_sent for call in s3.faulty.calls if call.kind in {"put_object", "upload_part"})


@pytest.mark.parametrize("same_process", [True, False])
async def test_o5_small_requests_cost_little(s3: Bucket, same_process: bool) -> None:
    """O5: In requests of 256 KiB no byte is sent more than 2.1 times on average, with three calls a request at most."""
    storage = await s3.adapter(part_bytes=8 * MIB)
    upload = Upload(some_bytes(32 * MIB))
    requests = 0
    while upload.offset < len(upload.data):
        if not same_process:
            forget_tails(storage)
        await upload.request(storage, 2**18)
        requests += 1
    stored = await upload.complete(storage)
    put, calls = _put(s3), len(s3.faulty.calls)
    print(f"O5: {put / len(upload.data):.2f} of the size put, {calls / requests:.2f} calls a request, {s3.kinds()}")

    assert put <= 2.1 * len(upload.data)
    assert calls <= 3 * requests
    assert (s3.kinds()["get_object"] == 0) == same_process
    assert s3.body(stored) == upload.data


async def test_o5_tiny_requests_make_no_long_chain(s3: Bucket) -> None:
    """O5: In requests of 1 KiB there are never more than 32 segments, each byte is sent four times at most."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(300 * 2**10))
    longest = 0
    while upload.offset < len(upload.data):
        await upload.request(storage, 2**10)
        longest = max(longest, len(upload.ledger))
    put = _put(s3)
    stored = await upload.complete(storage)
    print(f"O5: {longest} segments at most, {put / len(upload.data):.2f} of the size put before the end")

    assert longest <= 32
    assert len(s3.objects()) == 1
    assert put <= 4 * len(upload.data)
    assert s3.body(stored) == upload.data


async def test_o5_a_large_request_is_sent_once(s3: Bucket) -> None:
    """O5: Of a request that holds the whole file no byte is sent twice, and none is read back."""
    storage = await s3.adapter(memory=Memory(8 * PART))
    upload = Upload(some_bytes(4 * PART + ODD))
    await upload.request(storage, last=True)
    await upload.complete(storage)

    assert _put(s3) == len(upload.data)
    assert not s3.kinds()["get_object"]
