"""The last steps of an upload to a bucket: completion that fails, multipart uploads that vanish, joins."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service import uploads
from service.model import State
from tests.contract.buckets import some_bytes
from tests.stores.calls import Call, Kind
from tests.stores.faults import Cut, after, before, error, hang, hold, lose_reply, status
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store
from tests.web.harness import OCTETS, TUS, path_of
from tests.web.s3_site import MIB, PART, PREFIX, S3Site, at_most, s3_site
from tests.web.sweeps import logged

CONTENT = some_bytes(12 * MIB + 7)
DOWN = ["reset", "503"]


@pytest.fixture
async def s3(
    tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[S3Site]:
    async with s3_site(tmp_path, store, bucket, faulty, monkeypatch) as running:
        yield running


@pytest.fixture
async def impatient(
    tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[S3Site]:
    """A service that waits for its store no longer than a second."""
    async with s3_site(tmp_path, store, bucket, faulty, monkeypatch, answers_within=1.0) as running:
        yield running


async def assert_one_file(s3: S3Site, path: str, content: bytes = CONTENT) -> None:
    """One object, one event, and the right bytes."""
    assert await s3.here.stored(path) == content
    assert s3.ready_events() == 1
    s3.assert_only_files(len(content))


# --- C1: completion that fails --------------------------------------------------------------------


async def test_c1_a_completion_that_failed_is_done_by_the_sweep(s3: S3Site) -> None:
    """C1: Five failures: the last PATCH is to come again, and without any client sweeps make the file."""
    path = await s3.here.create(len(CONTENT))
    s3.faulty.fault("complete_multipart_upload", what=status(500), times=5)
    answer = await s3.patch(path, 0, CONTENT)
    assert (answer.status, answer.slug, answer.headers["Retry-After"]) == (503, "storage-unavailable", "5")
    assert await s3.state(path) is State.FINISHING
    assert s3.ready_events() == 0
    for _ in range(3):
        await s3.sweep()
    assert await s3.state(path) is State.READY
    await assert_one_file(s3, path)


async def test_c1_a_completion_that_hangs_is_done_by_the_sweep(impatient: S3Site) -> None:
    """C1: A Complete that is never answered ends the PATCH as one that failed, and the sweep makes the file."""
    path = await impatient.here.create(len(CONTENT))
    impatient.faulty.fault("complete_multipart_upload", what=hang())
    assert (await impatient.patch(path, 0, CONTENT)).status == 503
    assert await impatient.state(path) is State.FINISHING
    await impatient.sweep()
    await assert_one_file(impatient, path)


async def test_c1_a_completion_whose_reply_was_lost_is_one_that_was_done(s3: S3Site) -> None:
    """C1: Complete is done and says nothing: the PATCH is answered 204, from what lies in the bucket."""
    path = await s3.here.create(len(CONTENT))
    s3.faulty.fault("complete_multipart_upload", what=lose_reply())
    answer = await s3.patch(path, 0, CONTENT)
    assert (answer.status, answer.offset) == (204, len(CONTENT))
    await assert_one_file(s3, path)


async def test_c1_a_store_that_went_away_after_completing(s3: S3Site) -> None:
    """C1: Complete is done, and the store is away before it can say so or be asked: the sweep finds the object."""
    path = await s3.here.create(len(CONTENT))

    def away(_: Call) -> None:
        s3.faulty.down = "reset"
        raise Cut

    s3.faulty.fault("complete_multipart_upload", what=after(away))
    assert (await s3.patch(path, 0, CONTENT)).status == 503
    s3.faulty.down = None
    completions = s3.faulty.count("complete_multipart_upload")
    await s3.sweep()
    assert s3.faulty.count("complete_multipart_upload") == completions, "the object was found by looking"
    await assert_one_file(s3, path)


@pytest.mark.parametrize("how", DOWN)
async def test_c1_a_store_that_is_away_when_the_last_byte_comes(s3: S3Site, how: str) -> None:
    """C1: While the store is away HEAD is 423 and a sweep changes nothing; when it is back the next one finishes."""
    path = await s3.here.create(len(CONTENT))

    def away(_: Call) -> None:
        s3.faulty.down = how  # type: ignore[assignment]
        raise Cut

    s3.faulty.fault("complete_multipart_upload", what=before(away))
    answer = await s3.patch(path, 0, CONTENT)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    refused = await s3.here.head(path)
    assert (refused.status, refused.headers["Retry-After"]) == (423, "1")
    assert "Upload-Offset" not in refused.headers
    await s3.sweep()
    assert await s3.state(path) is State.FINISHING
    s3.faulty.down = None
    await s3.sweep()
    await assert_one_file(s3, path)


async def test_c1_head_is_423_until_the_file_is_there(s3: S3Site) -> None:
    """C1: While the store completes, HEAD is 423 and tells no offset; afterwards it tells the length."""
    path = await s3.here.create(len(CONTENT))
    held = hold("answered")
    s3.faulty.fault("complete_multipart_upload", what=held)
    patching = asyncio.ensure_future(s3.patch(path, 0, CONTENT))
    await asyncio.to_thread(held.caught)
    refused = await s3.here.head(path)
    assert refused.status == 423
    assert "Upload-Offset" not in refused.headers
    held.release()
    assert (await patching).status == 204
    told = await s3.here.head(path)
    assert (told.status, told.offset) == (200, len(CONTENT))
    await assert_one_file(s3, path)


async def test_c1_the_next_request_finishes_too(s3: S3Site) -> None:
    """C1: A client that asks again after a completion that failed has the file, without any sweep."""
    path = await s3.here.create(len(CONTENT))
    s3.faulty.fault("complete_multipart_upload", what=status(500), times=2)
    assert (await s3.patch(path, 0, CONTENT)).status == 503
    assert (await s3.here.head(path)).status == 423
    await s3.here.service.tasks.drain()
    assert (await s3.here.head(path)).offset == len(CONTENT)
    await assert_one_file(s3, path)


async def test_c1_a_small_file_whose_store_is_away(s3: S3Site) -> None:
    """C1: A file of one object that cannot be stored is no upload that is full; its client sends it again."""
    path = await s3.here.create(5)
    s3.faulty.fault("put_object", what=status(500), times=6)
    answer = await s3.patch(path, 0, b"hello")
    assert (answer.status, answer.offset) == (503, 0)
    assert (await s3.here.head(path)).offset == 0
    assert (await s3.patch(path, 0, b"hello")).status == 204
    await assert_one_file(s3, path, b"hello")


# --- C2: multipart uploads that vanish ------------------------------------------------------------


async def vanished(s3: S3Site, path: str) -> None:
    """Somebody aborts the upload's multipart upload behind our back."""
    ((key, multipart),) = s3.bucket.multiparts()
    s3.bucket.store.client().abort_multipart_upload(Bucket=s3.bucket.name, Key=key, UploadId=multipart)


async def test_c2_an_upload_whose_multipart_vanished_is_gone(s3: S3Site, log: io.StringIO) -> None:
    """C2: Aborted at 40 %: PATCH and then HEAD are 410, it is counted and logged, and the link makes a new upload."""
    content = some_bytes(15 * MIB)
    link = s3.here.link()
    path = await s3.here.create(len(content), link)
    assert (await s3.patch(path, 0, content[: 6 * MIB])).status == 204
    await vanished(s3, path)
    assert (await s3.here.head(path)).offset == 6 * MIB, "the ledger is believed, not the store"
    assert (await s3.patch(path, 6 * MIB, content[6 * MIB :])).status == 410
    assert (await s3.here.head(path)).status == 410
    assert s3.metric("attachd_uploads_failed_total", protocol="tus", reason="internal") == 1
    assert len(logged(log, "upload_lost")) == 1

    again = await s3.here.post(len(content), link)
    assert (again.status, path_of(again.headers["Location"]) != path) == (201, True)
    assert (await s3.patch(path_of(again.headers["Location"]), 0, content)).status == 204
    assert await s3.here.stored(path_of(again.headers["Location"])) == content
    s3.assert_only_files(len(content))


async def test_c2_a_multipart_that_vanished_before_completion_is_no_file(s3: S3Site) -> None:
    """C2: NoSuchUpload from Complete, and no object there: never 2xx, never a file, and no event of one."""
    path = await s3.here.create(len(CONTENT))
    s3.faulty.fault("complete_multipart_upload", what=error("NoSuchUpload", 404), times=None)
    assert (await s3.patch(path, 0, CONTENT)).status == 500
    assert await s3.state(path) is State.FAILED
    assert (await s3.here.head(path)).status == 410
    assert s3.metric("attachd_uploads_failed_total", protocol="tus", reason="internal") == 1
    assert s3.ready_events() == 0
    s3.assert_only_files()


async def test_c2_a_tail_that_vanished_is_a_lost_upload(s3: S3Site) -> None:
    """C2: A stored tail that somebody deleted ends the upload with 410, not with other bytes in its place."""
    path = await s3.here.create(len(CONTENT))
    assert (await s3.patch(path, 0, CONTENT[:MIB])).status == 204
    (tail,) = s3.bucket.tails()
    s3.memory.forget(tail)
    s3.bucket.store.client().delete_object(Bucket=s3.bucket.name, Key=PREFIX + tail)
    assert (await s3.patch(path, MIB, CONTENT[MIB:])).status == 410
    assert (await s3.here.head(path)).status == 410
    s3.assert_only_files()


@pytest.mark.parametrize(
    "kind",
    ["put_object", "upload_part", "create_multipart_upload", "get_object", "complete_multipart_upload"],
)
async def test_c2_a_404_of_a_router_loses_no_upload(s3: S3Site, kind: Kind) -> None:
    """C2: While a router before the store says 404, clients are to come again; then the file is made all the same."""
    path = await s3.here.create(len(CONTENT))
    assert (await s3.patch(path, 0, CONTENT[:MIB])).status == 204
    (tail,) = s3.bucket.tails()
    s3.memory.forget(tail)
    s3.faulty.fault(kind, what=status(404), times=None)
    content = CONTENT[MIB : 2 * MIB] if kind == "put_object" else CONTENT[MIB:]
    answer = await s3.patch(path, MIB, content)
    assert (answer.status, answer.slug, answer.headers["Retry-After"]) == (503, "storage-unavailable", "5")
    s3.faulty.clear()
    if await s3.state(path) is State.FINISHING:
        await s3.sweep()
    else:
        offset = (await s3.here.head(path)).offset
        assert offset == MIB
        assert (await s3.patch(path, offset, CONTENT[offset:])).status == 204
    await assert_one_file(s3, path)


async def test_c2_a_404_to_one_head_loses_no_file(s3: S3Site) -> None:
    """C2: A HEAD that is answered 404 right after Complete succeeded does not end the upload."""
    path = await s3.here.create(len(CONTENT))
    s3.faulty.fault("head_object", what=status(404))
    answer = await s3.patch(path, 0, CONTENT)
    assert (answer.status, answer.offset) == (204, len(CONTENT))
    await assert_one_file(s3, path)


# --- C5: concatenation ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [(7 * MIB, 100_000), (100_000, 7 * MIB), (3, 5)], ids=["large-small", "small-large", "tiny"]
)
async def test_c5_partials_become_one_file_and_leave_nothing(s3: S3Site, sizes: tuple[int, int]) -> None:
    """C5: A final of two partials has their bytes in order; when they are deleted only the file is left."""
    contents = [some_bytes(size, seed) for seed, size in enumerate(sizes)]
    partials = []
    for content in contents:
        path = await s3.here.create(len(content), Upload_Concat="partial")
        assert (await s3.patch(path, 0, content)).status == 204
        partials.append(path)
    answer = await s3.here.post(None, s3.here.link(), Upload_Concat="final;" + " ".join(partials))
    assert answer.status == 201
    final = path_of(answer.headers["Location"])
    status_of = await s3.here.ask("GET", f"{final}?wait=20")
    assert status_of.json["state"] == "ready"
    for path in partials:
        assert (await s3.here.ask("DELETE", path, TUS)).status == 204
    assert await s3.here.stored(final) == b"".join(contents)
    assert s3.ready_events() == 1
    s3.assert_only_files(sum(sizes))


async def test_c5_a_final_is_answered_before_it_is_joined(s3: S3Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """C5: 201 comes while the store copies; until it has, HEAD tells no offset, and then there is the file."""
    monkeypatch.setattr(uploads, "FINAL_PATIENCE_SECONDS", 0.02)
    contents = [some_bytes(2 * PART, 1), some_bytes(MIB, 2)]
    partials = []
    for content in contents:
        path = await s3.here.create(len(content), Upload_Concat="partial")
        assert (await s3.patch(path, 0, content)).status == 204
        partials.append(path)
    copying = hold()
    s3.faulty.fault("upload_part_copy", what=copying, times=None)
    with at_most(20):
        answer = await s3.here.post(None, s3.here.link(), Upload_Concat="final;" + " ".join(partials))
    assert answer.status == 201
    final = path_of(answer.headers["Location"])
    await asyncio.to_thread(copying.caught)
    looked = await s3.here.head(final)
    assert looked.status == 200
    assert "Upload-Offset" not in looked.headers
    copying.release()
    assert (await s3.here.ask("GET", f"{final}?wait=20")).json["state"] == "ready"
    assert await s3.here.stored(final) == b"".join(contents)


async def test_c5_a_join_that_failed_is_done_by_the_sweep(s3: S3Site) -> None:
    """C5: The store fails while it joins: the final is answered all the same, and the sweep makes the file."""
    contents = [some_bytes(PART + 5, 1), some_bytes(MIB, 2)]
    partials = []
    for content in contents:
        path = await s3.here.create(len(content), Upload_Concat="partial")
        assert (await s3.patch(path, 0, content)).status == 204
        partials.append(path)
    s3.faulty.down = "503"
    answer = await s3.here.post(None, s3.here.link(), Upload_Concat="final;" + " ".join(partials))
    assert answer.status == 201
    final = path_of(answer.headers["Location"])
    await s3.here.service.tasks.drain()
    assert await s3.state(final) is State.FINISHING
    s3.faulty.down = None
    await s3.sweep()
    assert await s3.here.stored(final) == b"".join(contents)


async def test_c1_a_creation_that_brings_the_whole_file_is_finished_by_the_sweep(s3: S3Site) -> None:
    """C1: A creation whose body is the file, and whose completion fails, is not answered as complete."""
    link = s3.here.link()
    s3.faulty.fault("complete_multipart_upload", what=status(500), times=2)
    fields = TUS | {"Upload-Length": str(len(CONTENT)), "Content-Type": OCTETS}
    answer = await s3.ask("POST", link, fields, CONTENT)
    assert answer.status in {201, 503}
    assert answer.headers.get("Upload-Offset") != str(len(CONTENT))
    await s3.sweep()
    found = await s3.here.ask("HEAD", link, TUS)
    assert found.offset == len(CONTENT)
    await assert_one_file(s3, path_of(found.headers["Location"]))
