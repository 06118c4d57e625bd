"""What an S3 upload's offset says, whatever fails: gap-free, never falling, backed by the bucket (O1, O2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from service.storage.base import StorageError, StorageShort, StorageUnavailable, Stored
from service.storage.s3 import S3Storage
from tests.contract.buckets import MIB, PART, Bucket, Upload, Waits, bucket_of, forget_tails, give_up_soon, some_bytes
from tests.stores.calls import Call, Kind
from tests.stores.faults import Cut, Fault, after, before, cut_request, error, hang, lose_reply, status
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store


@pytest.fixture
async def s3(store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    async with bucket_of(store, bucket, faulty, monkeypatch) as made:
        yield made


# a part that fails for good


def _stored(s3: Bucket, number: int) -> Callable[[], None]:
    """Returns once that part is in the store."""

    def wait() -> None:
        with s3.faulty._change:
            assert s3.faulty._change.wait_for(
                lambda: any(call.part_number == number and call.over for call in s3.faulty.calls), 20
            )

    return wait


@pytest.mark.parametrize(
    "what",
    [status(500), error("AccessDenied", 403), cut_request(MIB), hang()],
    ids=["500", "403", "cut", "hang"],
)
async def test_o1_parts_behind_a_failed_one_do_not_count(
    s3: Bucket, monkeypatch: pytest.MonkeyPatch, what: Fault
) -> None:
    """O1: Part 3 fails for good while 4 succeeds: two parts are held, no listing is asked, and a resume ends right."""
    give_up_soon(monkeypatch, 2.0)
    storage = await s3.adapter()
    upload = Upload(some_bytes(5 * PART + 1))
    s3.faulty.fault("upload_part", part_number=3, times=None, what=Waits(what, _stored(s3, 4)))

    with pytest.raises(StorageUnavailable):
        await upload.request(storage, last=True)
    assert upload.offset == 2 * PART
    assert [(part.number, part.end) for part in upload.ledger] == [(1, PART), (2, 2 * PART)]
    assert any(call.part_number == 4 and call.status == 200 for call in s3.faulty.calls)
    kinds = s3.kinds()
    assert not kinds["list_parts"] + kinds["list_objects"] + kinds["list_multipart_uploads"]

    s3.faulty.clear()
    await upload.request(storage, last=True)
    assert s3.body(await upload.complete(storage)) == upload.data


async def test_o1_held_never_counts_a_part_under_way(s3: Bucket) -> None:
    """O1: While part 1 is on its way and part 2 is stored, nothing is held; when part 1 is there, both are."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(2 * PART))
    s3.faulty.fault("upload_part", part_number=1, what=Waits(Fault(), _stored(s3, 2)))
    async with storage.append(upload.upload_id, (), epoch=1, align=1) as appender:
        await appender.write(memoryview(upload.data))
        early = await appender.held()
        upload.commit(early)
        upload.commit(await appender.flush(last=True))

    assert early.offset == 0
    assert upload.offset == 2 * PART
    assert s3.body(await upload.complete(storage)) == upload.data


# a resume, and every call that it makes

#: what `_resume` asks of the store, from the segments that are there to the file without leftovers
RESUME: dict[Kind, int] = {
    "get_object": 3,
    "create_multipart_upload": 1,
    "upload_part": 2,
    "put_object": 1,
    "delete_object": 3,
    "complete_multipart_upload": 1,
    "head_object": 2,
    "list_multipart_uploads": 1,
    "list_objects": 1,
}
#: after these the store is as before: to end after one, or to make it twice, is to end before it
LOOKS = {"get_object", "head_object", "list_multipart_uploads", "list_objects"}
EVERY_CALL = [(kind, nth) for kind, count in RESUME.items() for nth in range(1, count + 1)]
EVERY_CHANGE = [(kind, nth) for kind, nth in EVERY_CALL if kind not in LOOKS]


async def _interrupted(s3: Bucket, storage: S3Storage) -> Upload:
    """Two tail segments of the first part are committed, and the process has nothing of them at hand."""
    upload = Upload(some_bytes(PART + MIB))
    await upload.request(storage, 2 * MIB)
    await upload.request(storage, MIB)
    forget_tails(storage)
    s3.faulty.clear()
    return upload


async def _resume(storage: S3Storage, upload: Upload) -> Stored:
    """The rest of the first part and a new tail, of unknown length; then the end, by another holder of the lease."""
    if upload.offset < len(upload.data):
        await upload.request(storage)
    await upload.request(storage, 0, last=True)
    forget_tails(storage)
    return await upload.complete(storage, epoch=2)


async def test_o2_a_resume_makes_these_calls(s3: Bucket) -> None:
    """O2: The calls that the tests below let fail are all that a resume makes."""
    storage = await s3.adapter()
    upload = await _interrupted(s3, storage)
    await _resume(storage, upload)

    assert s3.kinds() == Counter({str(kind): count for kind, count in RESUME.items()})


def _refused(s3: Bucket, kind: Kind, nth: int) -> None:
    """The nth call fails for good, others do not."""
    s3.faulty.fault(kind, nth=nth, what=error("AccessDenied", 403))


def _reply_lost(s3: Bucket, kind: Kind, nth: int) -> None:
    """The nth call is done, its reply is lost, and it can be made again."""
    s3.faulty.fault(kind, nth=nth, what=lose_reply())


def _gone(s3: Bucket) -> Callable[[Call], None]:
    def callback(call: Call) -> None:
        s3.faulty.down = "reset"
        raise Cut

    return callback


def _gone_before(s3: Bucket, kind: Kind, nth: int) -> None:
    """From this call on the store is away, as for a process that was killed before it."""
    s3.faulty.fault(kind, nth=nth, what=before(_gone(s3)))


def _gone_after(s3: Bucket, kind: Kind, nth: int) -> None:
    """The nth call is done, and the store is away, as for a process that was killed right after it."""
    s3.faulty.fault(kind, nth=nth, what=after(_gone(s3)))


@pytest.mark.parametrize(
    ("go_wrong", "kind", "nth"),
    [(go_wrong, *call) for go_wrong in (_refused, _gone_before) for call in EVERY_CALL]
    + [(go_wrong, *change) for go_wrong in (_reply_lost, _gone_after) for change in EVERY_CHANGE],
)
async def test_o2_whatever_call_of_a_resume_fails_nothing_is_lost(
    s3: Bucket, go_wrong: Callable[[Bucket, Kind, int], None], kind: Kind, nth: int
) -> None:
    """O2: A resume fails at any call; the offset does not fall, and another process ends it with the right file."""
    storage = await s3.adapter()
    upload = await _interrupted(s3, storage)
    go_wrong(s3, kind, nth)
    try:
        stored = await _resume(storage, upload)
    except StorageError:
        s3.faulty.down = None
        other = await s3.adapter()
        stored = await _resume(other, upload)
    s3.faulty.down = None
    assert s3.body(stored) == upload.data


async def test_o2_a_tail_goes_only_when_its_successor_is_committed(s3: Bucket) -> None:
    """O2: The segments that a part swallows are there until the caller drops them, and then they are not."""
    storage = await s3.adapter()
    upload = await _interrupted(s3, storage)
    segments = s3.tails()
    await upload.request(storage, drop=False)

    assert len(segments) == 2
    assert segments < s3.tails()
    assert set(upload.drop) == {f"o:{key}" for key in segments}
    assert not s3.kinds()["delete_object"]
    await storage.drop(upload.upload_id, upload.drop)
    assert not segments & s3.tails()


async def test_o2_the_last_tail_goes_only_when_the_file_is_there(s3: Bucket) -> None:
    """O2: When the first segment is removed at completion, the file is whole already."""
    upload = Upload(some_bytes(PART + MIB))
    storage = await s3.adapter()
    await upload.request(storage)
    seen: list[dict[str, int]] = []
    s3.faulty.fault("delete_object", what=before(lambda call: seen.append(s3.objects())))
    stored = await upload.complete(storage)

    assert seen[0][stored.key] == len(upload.data)
    assert s3.objects() == {stored.key: len(upload.data)}


async def test_o2_what_was_dropped_cannot_be_resumed_from_an_old_ledger(s3: Bucket) -> None:
    """O2: A ledger from before the commit, whose segments were dropped since, is short and never a wrong file."""
    storage = await s3.adapter()
    upload = await _interrupted(s3, storage)
    earlier = upload.without(0)
    await upload.request(storage)

    with pytest.raises(StorageShort):
        await earlier.request(storage)
    assert earlier.offset == 3 * MIB
    await upload.request(storage, 0, last=True)
    assert s3.body(await upload.complete(storage)) == upload.data
