"""What an S3 upload leaves in the bucket, and what the sweep sees of it (E3)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from service.clock import new_upload_id
from service.storage.base import StorageError, StorageUnavailable
from service.storage.s3 import S3Storage
from tests.contract.buckets import MIB, PART, PREFIX, Bucket, Upload, bucket_of, some_bytes
from tests.stores.faults import error
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store

HOUR = 3600.0


@pytest.fixture
async def s3(store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    async with bucket_of(store, bucket, faulty, monkeypatch) as made:
        yield made


#: what is not of any upload below the prefix
FOREIGN = (
    "u_abcdefghijklm/file",
    "elsewhere/file",
    f"{PREFIX}readme",
    f"{PREFIX}v_abcdefghijklm/tail.1",
    f"{PREFIX}u_reports/2026/jan.csv",
    f"{PREFIX}u_a/file",
    f"{PREFIX}u_/x",
    f"{PREFIX}u_abcdefghijklm/other",
)
FOREIGN_MULTIPARTS = (
    "u_abcdefghijklm/file",
    f"{PREFIX}readme",
    f"{PREFIX}u_a/file",
    f"{PREFIX}u_abcdefghijklm/other",
)


def _add_foreign(s3: Bucket) -> set[tuple[str, str]]:
    """Objects and multipart uploads that are somebody else's; of the latter key and UploadId."""
    client = s3.store.client()
    for key in FOREIGN:
        client.put_object(Bucket=s3.name, Key=key, Body=b"abc")
    return {(key, client.create_multipart_upload(Bucket=s3.name, Key=key)["UploadId"]) for key in FOREIGN_MULTIPARTS}


async def _debris(s3: Bucket, storage: S3Storage) -> Upload:
    """An upload with parts and tails, committed or not, an orphaned multipart upload, and an orphaned whole file."""
    upload = Upload(some_bytes(2 * PART))
    await upload.request(storage, PART + MIB, drop=False)
    await upload.request(storage, MIB, drop=False)
    await upload.without(0).request(storage, MIB)
    await upload.without(len(upload.ledger)).request(storage, MIB, last=True)
    s3.store.client().create_multipart_upload(Bucket=s3.name, Key=f"{PREFIX}{upload.name}/file")
    return upload


async def test_e3_nothing_but_the_file_is_left_of_a_finished_upload(s3: Bucket) -> None:
    """E3: When a resumed upload is complete, no tail, orphan or multipart upload is left, and the foreign untouched."""
    storage = await s3.adapter()
    foreign = _add_foreign(s3)
    before = s3.objects()
    upload = await _debris(s3, storage)
    neighbour = Upload(some_bytes(MIB))
    await neighbour.request(storage)
    await upload.request(storage, last=True, epoch=2)
    stored = await upload.complete(storage, epoch=2)

    assert s3.body(stored) == upload.data
    ours = {key: size for key, size in s3.objects().items() if key not in before}
    assert ours.pop(stored.key) == 2 * PART
    assert {key.partition("/")[0] for key in ours} == {neighbour.name}
    assert set(s3.multiparts()) == foreign


@pytest.mark.parametrize("finished", [True, False])
async def test_e3_nothing_is_left_of_a_discarded_upload(s3: Bucket, finished: bool) -> None:
    """E3: After discard no object but a finished file, and no multipart upload, is left; twice is fine."""
    storage = await s3.adapter()
    foreign = _add_foreign(s3)
    before = s3.objects()
    upload = await _debris(s3, storage)
    for _ in range(2):
        await storage.discard(upload.upload_id, finished=finished)

    left = s3.objects().keys() - before.keys()
    assert all("/file." in key for key in left)
    assert len(left) == (0 if finished else 1)
    assert before.items() <= s3.objects().items()
    assert set(s3.multiparts()) == foreign


async def test_e3_discard_leaves_what_only_looks_like_the_uploads(s3: Bucket) -> None:
    """E3: Below an upload's own name, too, discard takes no key that is never made here."""
    storage = await s3.adapter()
    client = s3.store.client()
    upload = await _debris(s3, storage)
    below = f"{PREFIX}{upload.name}/"
    others = [f"{below}other", f"{below}file.txt", f"{below}tail.1"]
    for key in others:
        client.put_object(Bucket=s3.name, Key=key, Body=b"abc")
    multipart = client.create_multipart_upload(Bucket=s3.name, Key=f"{below}file.txt")["UploadId"]
    await storage.discard(upload.upload_id, finished=True)

    assert s3.objects().keys() == {key.removeprefix(PREFIX) for key in others}
    assert s3.multiparts() == [(f"{below}file.txt", multipart)]


async def test_e3_discard_removes_what_it_can(s3: Bucket) -> None:
    """E3: One object that cannot be removed keeps none of the others; the failure is told, a second call mends it."""
    storage = await s3.adapter()
    upload = await _debris(s3, storage)
    s3.faulty.fault("delete_object", what=error("AccessDenied", 403))
    with pytest.raises(StorageUnavailable):
        await storage.discard(upload.upload_id, finished=True)
    assert len(s3.objects()) == 1

    await storage.discard(upload.upload_id, finished=True)
    assert not s3.objects()
    assert not s3.multiparts()


async def test_e3_a_discard_of_an_outage_can_be_made_again(s3: Bucket) -> None:
    """E3: Discard while the store is away raises StorageUnavailable, removes nothing, and works when it is back."""
    storage = await s3.adapter()
    upload = await _debris(s3, storage)
    s3.faulty.down = "503"
    with pytest.raises(StorageUnavailable):
        await storage.discard(upload.upload_id)
    s3.faulty.down = None
    await storage.discard(upload.upload_id, finished=True)

    assert not s3.objects()


async def test_e3_small_uploads_leave_one_object_each(s3: Bucket) -> None:
    """E3: Twenty finished uploads are twenty objects."""
    storage = await s3.adapter()
    for number in range(20):
        upload = Upload(some_bytes(1000, seed=number))
        await upload.request(storage, 300)
        await upload.request(storage, last=True, epoch=2)
        await upload.complete(storage, epoch=2)

    assert len(s3.objects()) == 20


async def _kinds_of_orphans(s3: Bucket, storage: S3Storage) -> dict[str, str]:
    """One upload of each kind of orphan, by name: what it is."""
    client = s3.store.client()
    tail, whole, parts, empty = (Upload(some_bytes(PART + 5)) for _ in range(4))
    await tail.request(storage, 100)
    await whole.request(storage, 1000, last=True)
    await parts.request(storage, PART)
    await parts.complete(storage)
    client.create_multipart_upload(Bucket=s3.name, Key=f"{PREFIX}{empty.name}/file")
    return {tail.name: "tail", whole.name: "file", parts.name: "file", empty.name: "multipart"}


async def test_e3_the_sweep_finds_orphans_of_each_kind(s3: Bucket) -> None:
    """E3: A tail, a small file, a large file and a multipart upload without parts are listed, the foreign are not."""
    storage = await s3.adapter()
    _add_foreign(s3)
    kinds = await _kinds_of_orphans(s3, storage)
    found = [held async for held in storage.held(older_than=-HOUR)]

    assert {held.name for held in found} == kinds.keys()
    assert len(found) == 4
    for held in found:
        assert (held.key is not None) == (kinds[held.name] == "file")


async def test_e3_the_sweep_tells_the_rest_where_multiparts_are_not_listed(s3: Bucket) -> None:
    """E3: A store without ListMultipartUploads: all objects are told, and multipart uploads are left to its rule."""
    storage = await s3.adapter()
    kinds = await _kinds_of_orphans(s3, storage)
    s3.faulty.no_list_multiparts = True
    found = {held.name async for held in storage.held(older_than=-HOUR)}

    assert found == {name for name, kind in kinds.items() if kind != "multipart"}


async def test_e3_what_the_sweep_finds_can_be_removed(s3: Bucket) -> None:
    """E3: Removing all that is listed by what the listing says leaves the foreign alone."""
    storage = await s3.adapter()
    foreign = _add_foreign(s3)
    before = s3.objects()
    await _kinds_of_orphans(s3, storage)
    async for held in storage.held(older_than=-HOUR):
        await (storage.discard(held.name) if held.key is None else storage.delete(held.key))

    assert s3.objects() == before
    assert set(s3.multiparts()) == foreign


async def test_e3_a_request_whose_first_part_fails_leaves_no_multipart(s3: Bucket) -> None:
    """E3: However often an upload fails with its first part, no multipart upload is left, and it ends right."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(2 * PART + 1))
    for _ in range(3):
        s3.faulty.fault("upload_part", part_number=1, times=None, what=error("AccessDenied", 403))
        with pytest.raises(StorageError):
            await upload.request(storage, last=True)
        s3.faulty.clear()
        assert upload.offset == 0
        assert not s3.multiparts()

    await upload.request(storage, last=True)
    assert s3.body(await upload.complete(storage)) == upload.data


async def test_e3_a_request_that_is_cut_off_keeps_its_multipart_once_it_is_told(s3: Bucket) -> None:
    """E3: A multipart upload that a receipt names is there for the next request, although a later part fails."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(2 * PART + 1))
    s3.faulty.fault("upload_part", part_number=2, times=None, what=error("AccessDenied", 403))
    with pytest.raises(StorageError):
        await upload.request(storage, last=True)
    s3.faulty.clear()

    assert upload.offset == PART
    assert len(s3.multiparts()) == 1
    await upload.request(storage, last=True)
    assert s3.body(await upload.complete(storage)) == upload.data


async def test_e3_a_multipart_whose_abort_fails_is_found(s3: Bucket) -> None:
    """E3: A multipart upload that could not be aborted after its first part had failed is the sweep's."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(PART + 1))
    for kind in ("upload_part", "abort_multipart_upload"):
        s3.faulty.fault(kind, times=None, what=error("AccessDenied", 403))
    with pytest.raises(StorageError):
        await upload.request(storage)
    s3.faulty.clear()

    assert len(s3.multiparts()) == 1
    assert [held.name async for held in storage.held(older_than=-HOUR)] == [upload.name]


async def test_e3_a_key_of_another_upload_is_not_dropped(s3: Bucket) -> None:
    """E3: Drop takes only keys of the upload it is for."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(100))
    await upload.request(storage)
    with pytest.raises(ValueError, match="another"):
        await storage.drop(new_upload_id(), [f"o:{key}" for key in s3.tails()])
    assert s3.tails()


async def test_e3_a_start_that_was_killed_leaves_nothing_for_long(s3: Bucket) -> None:
    """E3: What a start tries the store with and leaves behind, killed, is removed by one an hour later; no other is."""
    client = s3.store.client()
    old, young = f"{PREFIX}attachd-probe-{'0' * 16}", f"{PREFIX}attachd-probe-{'1' * 16}"
    foreign = "attachd-probe-elsewhere"
    for key in (old, foreign):
        client.put_object(Bucket=s3.name, Key=key, Body=b"abc")
        client.create_multipart_upload(Bucket=s3.name, Key=key)
    s3.store.age(s3.name, 2 * HOUR)
    client.put_object(Bucket=s3.name, Key=young, Body=b"abc")
    client.create_multipart_upload(Bucket=s3.name, Key=young)
    await s3.adapter(asks=True)

    assert set(s3.store.objects(s3.name)) == {young, foreign, f"{PREFIX}attachd-owner"}
    assert {key for key, _ in s3.multiparts()} == {young, foreign}


async def test_e3_debris_of_a_start_that_cannot_be_removed_stops_no_other(s3: Bucket) -> None:
    """E3: Where the store does not list, a start is as good as any."""
    for kind in ("list_objects", "list_multipart_uploads"):
        s3.faulty.fault(kind, times=None, what=error("AccessDenied", 403))
    storage = await s3.adapter(asks=True)
    await storage.probe()
