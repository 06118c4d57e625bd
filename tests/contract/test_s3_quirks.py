"""Stores that lack this or that, and calls that fail in passing (K3)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from botocore.exceptions import ClientError

from service.storage.base import StorageError, StorageFull, StorageUnavailable
from service.storage.s3 import S3Storage, calls, client, naming
from service.storage.s3.client import Fault, StoreRefused
from tests.contract.buckets import MIB, PART, Bucket, Upload, bucket_of, forget_tails, some_bytes
from tests.contract.storage_values import content
from tests.stores import faults
from tests.stores.calls import Call, Kind
from tests.stores.faults import Answer, cut_reply, cut_request, error, lose_reply, slow_down, status
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store


@pytest.fixture
async def s3(store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    async with bucket_of(store, bucket, faulty, monkeypatch) as made:
        yield made


async def _all_works(s3: Bucket, storage: S3Storage, *, checksums: bool) -> None:
    """Uploaded, resumed with and without what was at hand, finished, joined and read; with the checksums as told."""
    assert storage._calls.checksums == checksums
    large, small = Upload(some_bytes(2 * PART + MIB)), Upload(some_bytes(1000))
    for size in (PART + MIB, 2 * MIB, None):
        await large.request(storage, size)
        forget_tails(storage)
    assert all(naming.is_checked(part.etag) == checksums for part in large.ledger if part.key.startswith("m:"))
    await small.request(storage, last=True)
    for upload in (large, small):
        assert await content(storage, await upload.complete(storage)) == upload.data
    sources = [Upload(some_bytes(size, seed=size)) for size in (PART + MIB, 7)]
    for source in sources:
        await source.request(storage)
    joined = Upload(b"".join(source.data for source in sources))
    joined.commit(await storage.concatenate(joined.upload_id, [source.ledger for source in sources], epoch=1))
    assert await content(storage, await joined.complete(storage)) == joined.data
    for source in sources:
        # a store that lists no multipart uploads says so
        with suppress(StoreRefused):
            await storage.discard(source.upload_id, finished=True)
    assert len(s3.objects()) == 3


async def test_k3_checksums_are_used_where_they_are_checked(s3: Bucket) -> None:
    """K3: On a store that refuses a wrong CRC-32C, each part comes with one."""
    if s3.store.kind == "moto":
        pytest.skip("moto looks at no checksum")
    await _all_works(s3, await s3.adapter(asks=True), checksums=True)


def _refuses(faulty: FaultyStore) -> None:
    faulty.refuse_checksum_headers = True


def _drops(faulty: FaultyStore) -> None:
    faulty.drop_checksum_headers = True


@pytest.mark.parametrize("quirk", [_refuses, _drops])
async def test_k3_checksums_are_left_out_where_they_do_not_work(
    s3: Bucket, quirk: Callable[[FaultyStore], None]
) -> None:
    """K3: A store that refuses checksum headers, or drops them in silence, gets none, and everything works."""
    quirk(s3.faulty)
    await _all_works(s3, await s3.adapter(asks=True), checksums=False)


async def test_k3_a_store_that_takes_no_notice_of_checksums_works(
    moto_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K3: moto, which stores a body whose checksum is wrong, is found out, and everything works."""
    name = moto_store.make_bucket()
    with FaultyStore(moto_store) as faulty:
        async with bucket_of(moto_store, name, faulty, monkeypatch) as s3:
            await _all_works(s3, await s3.adapter(asks=True), checksums=False)
    moto_store.drop_bucket(name)


async def test_k3_a_store_that_wants_equal_parts_works(s3: Bucket) -> None:
    """K3: Everything works on a store whose parts must have one size."""
    s3.faulty.equal_parts = True
    storage = await s3.adapter(asks=True)
    await _all_works(s3, storage, checksums=storage._calls.checksums)


async def test_k3_a_store_that_lists_no_multiparts_works(s3: Bucket) -> None:
    """K3: Everything but finding orphaned multipart uploads works on a store without their listing."""
    s3.faulty.no_list_multiparts = True
    storage = await s3.adapter(asks=True)
    await _all_works(s3, storage, checksums=storage._calls.checksums)
    assert not s3.tails(), "objects are tidied up all the same"


async def test_k3_discard_removes_objects_where_multiparts_are_not_listed(s3: Bucket) -> None:
    """K3: Without the listing of multipart uploads discard removes all objects, and is content with that."""
    s3.faulty.no_list_multiparts = True
    storage = await s3.adapter(asks=True)
    upload = Upload(some_bytes(PART + MIB))
    await upload.request(storage)
    assert s3.tails()
    await storage.discard(upload.upload_id, finished=True)

    assert not s3.objects()


async def test_k3_an_upload_keeps_its_checksums_when_the_store_changes_its_mind(s3: Bucket) -> None:
    """K3: An upload begun with checksums is resumed with them, and one begun without is resumed without."""
    if s3.store.kind == "moto":
        pytest.skip("moto looks at no checksum")
    checked, plain = Upload(some_bytes(2 * PART)), Upload(some_bytes(2 * PART))
    storage = await s3.adapter(asks=True)
    await checked.request(storage, PART)
    s3.faulty.drop_checksum_headers = True
    other = await s3.adapter(asks=True)
    await plain.request(other, PART)
    s3.faulty.drop_checksum_headers = False
    await checked.request(other, last=True)
    await plain.request(storage, last=True)

    assert s3.body(await checked.complete(storage)) == checked.data
    assert s3.body(await plain.complete(storage)) == plain.data


# calls that fail in passing


class Page(faults.Fault):
    """A router answers with a page of its own, because it does not know the store at the moment."""

    takes_over = True

    def answer(self, call: Call) -> Answer:
        """See `Fault.answer`."""
        return Answer(404, b"<!doctype html><html><head><title>404</title></head>", (("Content-Type", "text/html"),))


@pytest.mark.parametrize(
    "what",
    [
        status(500),
        slow_down(),
        status(429),
        cut_request(1000),
        lose_reply(),
        error("RequestTimeout", 400),
        Page(),
    ],
    ids=["500", "SlowDown", "429", "cut", "reply lost", "RequestTimeout", "404 of a router"],
)
@pytest.mark.parametrize("kind", ["put_object", "upload_part"])
async def test_a_passing_failure_is_not_noticed(s3: Bucket, kind: str, what: faults.Fault) -> None:
    """A call that fails twice in passing is made three times, and the request succeeds."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(PART + 1000))
    s3.faulty.fault(kind, times=2, what=what)  # type: ignore[arg-type]
    await upload.request(storage)

    assert s3.kinds()[kind] == 3
    assert s3.body(await upload.complete(storage)) == upload.data


@pytest.mark.parametrize("what", [status(404), Page()], ids=["bare", "page"])
@pytest.mark.parametrize("kind", ["put_object", "upload_part", "create_multipart_upload", "get_object"])
async def test_c2_a_404_that_is_not_the_stores_loses_nothing(s3: Bucket, kind: Kind, what: faults.Fault) -> None:
    """C2: A 404 without a code of S3's is tried again, then worth a retry; the upload goes on when it is over."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(PART))
    await upload.request(storage, MIB)
    forget_tails(storage)
    s3.faulty.clear()
    s3.faulty.fault(kind, times=None, what=what)
    with pytest.raises(StorageUnavailable):
        await upload.request(storage, MIB if kind == "put_object" else None)
    assert s3.kinds()[kind] == 6

    s3.faulty.clear()
    assert upload.offset == MIB
    await upload.request(storage)
    assert s3.body(await upload.complete(storage)) == upload.data


async def test_a_read_that_is_cut_is_read_again(s3: Bucket) -> None:
    """A reply that ends in the middle is no shorter file: the piece is fetched again."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(2 * MIB))
    await upload.request(storage, last=True)
    stored = await upload.complete(storage)
    s3.faulty.fault("get_object", nth=2, times=2, what=cut_reply(1000))

    assert await content(storage, stored) == upload.data


@pytest.mark.parametrize(
    ("what", "expected", "count"),
    [
        (error("AccessDenied", 403), StoreRefused, 1),
        (error("InvalidAccessKeyId", 403), StoreRefused, 1),
        (error("NoSuchBucket", 404), StoreRefused, 1),
        (error("QuotaExceeded", 403), StorageFull, 1),
        (status(500), StorageUnavailable, 6),
        (slow_down(), StorageUnavailable, 6),
    ],
    ids=["AccessDenied", "InvalidAccessKeyId", "NoSuchBucket", "QuotaExceeded", "500", "SlowDown"],
)
async def test_a_lasting_failure_is_told(
    s3: Bucket, what: faults.Fault, expected: type[StorageError], count: int
) -> None:
    """What trying again does not mend is not tried again; what might is, six times; then it is the port's error."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(1000))
    s3.faulty.fault("put_object", times=None, what=what)
    with pytest.raises(expected) as caught:
        await upload.request(storage, last=True)

    assert type(caught.value) is expected
    assert not caught.value.permanent
    assert s3.kinds()["put_object"] == count
    assert upload.offset == 0
    for secret in (s3.name, upload.upload_id, upload.name, "127.0.0.1", s3.store.access_key):
        assert secret not in str(caught.value)


async def test_the_store_says_when_to_come_back(s3: Bucket) -> None:
    """After a SlowDown with Retry-After the call is not made again before that."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(1000))
    s3.faulty.fault("put_object", what=slow_down(1))
    began = time.monotonic()
    await upload.request(storage)

    assert time.monotonic() - began >= 1.0
    assert s3.kinds()["put_object"] == 2


async def test_a_store_that_asks_for_more_patience_than_clients_have(s3: Bucket) -> None:
    """A SlowDown whose Retry-After is an hour is not tried again: the request hears of it at once."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(1000))
    s3.faulty.fault("put_object", times=None, what=slow_down(3600))
    with pytest.raises(StorageUnavailable):
        await upload.request(storage)
    assert s3.kinds()["put_object"] == 1


def test_waits_double_with_jitter_and_have_a_bound() -> None:
    """A wait is anywhere below a bound that doubles up to ten seconds, and at least as long as the store says."""
    failed = Fault("unavailable", "500", retry=True)
    for attempt, bound in ((1, 0.4), (2, 0.8), (3, 1.6), (9, 10.0)):
        waits = [calls._wait_seconds(attempt, failed) for _ in range(500)]
        assert 0 <= min(waits) < bound / 10
        assert bound * 0.9 < max(waits) <= bound
    for attempt, after in ((1, 3.0), (9, 30.0)):
        told = Fault("throttled", "SlowDown", retry=True, after_seconds=after)
        assert after <= calls._wait_seconds(attempt, told) <= max(after, 10.0)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("3", 3.0),
        ("Thu, 26 Nov 2026 10:00:30 GMT", 30.0),
        ("Thu, 26 Nov 2026 09:59:00 GMT", 0.0),
        ("soon", None),
        ("-1", None),
        ("", None),
    ],
)
def test_a_time_to_come_back_is_read_in_both_forms(said: str, seconds: float | None) -> None:
    """Retry-After is a number of seconds or a date, which counts from the answer's own; anything else says nothing."""
    headers = {"retry-after": said, "date": "Thu, 26 Nov 2026 10:00:00 GMT"}
    answer: Any = {
        "Error": {"Code": "SlowDown"},
        "ResponseMetadata": {"HTTPStatusCode": 503, "HTTPHeaders": headers},
    }
    assert client.fault_of(ClientError(answer, "PutObject")).after_seconds == seconds
