"""The end of an S3 upload: the right file, or an error that says whether to come again, never a guess (C1, C2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.storage.base import StorageError, StorageShort, StorageUnavailable
from service.storage.s3 import naming
from tests.contract.buckets import MIB, PART, PREFIX, Bucket, Upload, bucket_of, some_bytes
from tests.stores.calls import Call
from tests.stores.faults import before, error, lose_reply, status
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store


@pytest.fixture
async def s3(store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    async with bucket_of(store, bucket, faulty, monkeypatch) as made:
        yield made


@pytest.fixture(params=[True, False], ids=["known", "deferred"])
async def upload(request: pytest.FixtureRequest, s3: Bucket) -> Upload:
    """All bytes are committed: the last ones as a part, or as a tail because nobody said that they were the last."""
    storage = await s3.adapter(direct=True)
    made = Upload(some_bytes(PART + MIB))
    await made.request(storage, last=request.param)
    return made


@pytest.mark.parametrize("what", [status(500), error("InternalError", 200)], ids=["500", "200 with an error"])
async def test_c1_a_completion_that_fails_five_times_ends_right(s3: Bucket, upload: Upload, what: Any) -> None:
    """C1: While CompleteMultipartUpload fails, `complete` is worth a retry and there is no file; then there is one."""
    storage = await s3.adapter()
    s3.faulty.fault("complete_multipart_upload", times=5, what=what)
    failures = 0
    while s3.kinds()["complete_multipart_upload"] < 5:
        try:
            stored = await upload.complete(storage)
        except StorageUnavailable:
            assert not {key for key in s3.objects() if naming.is_file(key)}
            failures += 1
    stored = await upload.complete(storage)

    assert failures == 2
    assert s3.body(stored) == upload.data
    assert s3.objects() == {stored.key: stored.size}


async def test_c1_a_completion_whose_reply_is_lost_is_found(s3: Bucket, upload: Upload) -> None:
    """C1: CompleteMultipartUpload is done and its reply is lost: the file is found, once."""
    storage = await s3.adapter()
    s3.faulty.fault("complete_multipart_upload", what=lose_reply())
    stored = await upload.complete(storage)

    assert s3.body(stored) == upload.data
    assert s3.objects() == {stored.key: stored.size}


async def test_c1_a_completion_that_always_says_no_though_it_is_done_is_found(s3: Bucket, upload: Upload) -> None:
    """C1: The store completes and answers with an error for good: the object tells, not the answer."""
    storage = await s3.adapter()
    s3.faulty.fault("complete_multipart_upload", times=None, what=lose_reply())
    stored = await upload.complete(storage)

    assert s3.body(stored) == upload.data


async def test_c1_another_finisher_may_be_first(s3: Bucket, upload: Upload) -> None:
    """C1: NoSuchUpload, because another process has just completed it, ends in its file."""
    storage, other = await s3.adapter(direct=True), await s3.adapter()
    loop = asyncio.get_running_loop()

    def overtake(call: Call) -> None:
        asyncio.run_coroutine_threadsafe(upload.complete(storage, epoch=2), loop).result(20)

    s3.faulty.fault("complete_multipart_upload", what=before(overtake))
    stored = await upload.complete(other)

    assert s3.body(stored) == upload.data
    assert s3.objects() == {stored.key: stored.size}


async def test_c1_two_finishers_at_once_make_one_file(s3: Bucket, upload: Upload) -> None:
    """C1: Two processes that complete the same ledger at the same time both tell of the one file."""
    storage, other = await s3.adapter(), await s3.adapter()
    one, two = await asyncio.gather(upload.complete(storage), upload.complete(other, epoch=2))

    assert one == two
    assert s3.body(one) == upload.data
    assert s3.objects() == {one.key: one.size}


async def test_c1_an_outage_is_worth_a_retry(s3: Bucket, upload: Upload) -> None:
    """C1: A store that is away at the end is StorageUnavailable, and completing again is all it takes."""
    storage = await s3.adapter()
    s3.faulty.down = "reset"
    with pytest.raises(StorageUnavailable):
        await upload.complete(storage)
    s3.faulty.down = None

    assert s3.body(await upload.complete(storage)) == upload.data


async def test_c1_leftovers_do_not_keep_a_file_from_being_ready(s3: Bucket, upload: Upload) -> None:
    """C1: A store that refuses to list and to delete postpones tidying, not the end."""
    storage = await s3.adapter()
    for kind in ("list_objects", "list_multipart_uploads", "delete_object"):
        s3.faulty.fault(kind, times=None, what=error("AccessDenied", 403))

    assert s3.body(await upload.complete(storage, epoch=2)) == upload.data


@pytest.mark.parametrize("times", [1, None], ids=["one HEAD", "every HEAD"])
async def test_c2_a_404_to_head_is_not_believed(s3: Bucket, upload: Upload, times: int | None) -> None:
    """C2: A 404 to the HEAD after CompleteMultipartUpload may be anybody's: the file is found in the store's words."""
    storage = await s3.adapter()
    s3.faulty.fault("head_object", times=times, what=status(404))
    stored = await upload.complete(storage)

    assert s3.body(stored) == upload.data


async def test_c2_a_404_without_a_code_is_no_lost_upload(s3: Bucket, upload: Upload) -> None:
    """C2: Completion that a router answers with 404, for good, is worth a retry; when it is over there is the file."""
    storage = await s3.adapter()
    s3.faulty.fault("complete_multipart_upload", times=None, what=status(404))
    with pytest.raises(StorageUnavailable):
        await upload.complete(storage)
    s3.faulty.clear()

    assert s3.body(await upload.complete(storage)) == upload.data


def _abort(s3: Bucket) -> None:
    """As a rule of the bucket does with what is old."""
    for key, multipart in s3.multiparts():
        s3.store.client().abort_multipart_upload(Bucket=s3.name, Key=key, UploadId=multipart)


async def test_c2_a_vanished_multipart_upload_is_short_at_the_end(s3: Bucket, upload: Upload) -> None:
    """C2: Completing what was aborted behind our back is StorageShort, each time, and makes no file."""
    storage = await s3.adapter()
    _abort(s3)
    for epoch in (1, 2):
        with pytest.raises(StorageShort):
            await upload.complete(storage, epoch=epoch)
    assert not {key for key in s3.objects() if naming.is_file(key)}


async def test_c2_a_vanished_multipart_upload_is_short_when_bytes_come(s3: Bucket) -> None:
    """C2: A part for what was aborted behind our back is StorageShort, and the offset does not go on."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(3 * PART))
    await upload.request(storage, PART)
    _abort(s3)

    with pytest.raises(StorageShort):
        await upload.request(storage)
    assert upload.offset == PART
    with pytest.raises(StorageShort):
        await upload.complete(storage)


@pytest.mark.parametrize("lost", ["file.", "tail."])
async def test_c2_a_small_file_that_vanished_is_short(s3: Bucket, lost: str) -> None:
    """C2: A whole small file, or its tail, that is gone from the bucket is StorageShort for who comes later."""
    storage, other = await s3.adapter(), await s3.adapter()
    upload = Upload(some_bytes(1000))
    await upload.request(storage, last=lost == "file.")
    [key] = s3.objects()
    assert lost in key
    s3.store.client().delete_object(Bucket=s3.name, Key=PREFIX + key)

    with pytest.raises(StorageShort):
        await upload.complete(other, epoch=2)
    assert not s3.objects()


async def test_c2_a_part_of_another_size_is_no_file(s3: Bucket, upload: Upload) -> None:
    """C2: An object at the file's key that is not as long as the ledger is never taken for the file."""
    storage = await s3.adapter()
    s3.store.client().put_object(Bucket=s3.name, Key=f"{PREFIX}{upload.name}/file", Body=b"abc")
    _abort(s3)

    with pytest.raises(StorageError) as caught:
        await upload.complete(storage, epoch=2)
    assert caught.value.permanent
