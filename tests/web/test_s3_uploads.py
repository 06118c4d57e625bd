"""Uploads of every length to a bucket, however their bytes come; and what is left of those that end otherwise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from tests.contract.buckets import some_bytes
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store
from tests.web.harness import OCTETS, TUS, b64
from tests.web.s3_site import MIB, PART, S3Site, s3_site
from tests.web.under_way import SteppedClock, begin_patch, until

CONTENT: Final = some_bytes(2 * PART + 1)
HOUR: Final = 3600
#: lengths around the borders of parts and blocks
LENGTHS: Final = (1, MIB, PART - 1, PART, PART + 1, 2 * PART - 1, 2 * PART, 2 * PART + 1)


@pytest.fixture
async def s3(
    tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[S3Site]:
    """A service whose clocks the test moves."""
    clock = SteppedClock()
    async with s3_site(tmp_path, store, bucket, faulty, monkeypatch, clock=clock, upload_idle="1h") as running:
        yield running


def skip(s3: S3Site, seconds: float) -> None:
    """So much time passes here."""
    assert isinstance(s3.here.clock, SteppedClock)
    s3.here.clock.skip(seconds)


# --- O3: every length, every way ------------------------------------------------------------------


async def known(s3: S3Site, content: bytes) -> str:
    """The length is declared, and two PATCHes bring the bytes; the upload's path."""
    path = await s3.here.create(len(content))
    half = len(content) // 2
    assert (await s3.patch(path, 0, content[:half])).status == 204
    assert (await s3.patch(path, half, content[half:])).status == 204
    return path


async def declared_late(s3: S3Site, content: bytes) -> str:
    """The length is declared by a PATCH without bytes, after all of them."""
    path = await s3.here.create(None, Upload_Defer_Length="1")
    half = len(content) // 2
    assert (await s3.patch(path, 0, content[:half])).status == 204
    assert (await s3.patch(path, half, content[half:])).status == 204
    assert (await s3.patch(path, len(content), b"", Upload_Length=str(len(content)))).status == 204
    return path


async def chunked(s3: S3Site, content: bytes) -> str:
    """A plain PUT whose end tells the length."""
    answer = await s3.here.ask("PUT", s3.here.link(), {}, content, chunked=True)
    assert answer.status == 201
    return "/files/" + answer.headers["Location"].rpartition("/")[2]


@pytest.mark.parametrize("way", [known, declared_late, chunked])
async def test_o3_every_length_becomes_a_whole_file(s3: S3Site, way) -> None:
    """O3: Around every border of parts, with the length known or not, the object and the download are whole."""
    wrong = []
    for length in LENGTHS:
        path = await way(s3, CONTENT[:length])
        if await s3.here.stored(path) != CONTENT[:length]:
            wrong.append(length)
    assert wrong == []
    s3.assert_only_files(*LENGTHS)
    assert s3.ready_events() == len(LENGTHS)


async def test_o3_an_empty_file(s3: S3Site) -> None:
    """O3: A file without bytes is ready, and can be fetched."""
    path = await s3.here.create(0)
    assert await s3.here.stored(path) == b""


async def test_c3_a_finished_upload_needs_no_store(s3: S3Site) -> None:
    """C3: With the store away, HEAD of a finished upload tells its length, and the last PATCH again is accepted."""
    path = await known(s3, CONTENT)
    s3.faulty.down = "reset"
    assert (await s3.here.head(path)).offset == len(CONTENT)
    assert (await s3.patch(path, len(CONTENT), b"")).status == 204


# --- N: HEAD and two processes --------------------------------------------------------------------


async def test_T_0D1_head_of_a_silent_writer_stores_its_tail(s3: S3Site) -> None:
    """HEAD of an upload whose writer fell silent in the middle of a part answers from the stored tail."""
    path = await s3.here.create(len(CONTENT))
    line = await begin_patch(s3.here, path, 0, CONTENT[: 2 * MIB], length=len(CONTENT))
    # while its bytes are on their way to storage a writer is not silent
    await until(lambda: s3.in_hand == 2 * MIB)
    skip(s3, 2.5)
    answer = await s3.here.head(path)
    assert (answer.status, answer.offset) == (200, 2 * MIB)
    assert (await line.answer()).status == 423
    assert len(s3.bucket.tails()) == 1


async def test_two_processes_share_an_upload(
    tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one process stored another goes on with, though the first still has the tail at hand, and both read it."""
    async with (
        s3_site(tmp_path, store, bucket, faulty, monkeypatch, alone=False) as one,
        s3_site(tmp_path, store, bucket, faulty, monkeypatch, alone=False, sweeps=False) as two,
    ):
        path = await one.here.create(len(CONTENT))
        assert (await one.patch(path, 0, CONTENT[: 2 * MIB])).status == 204
        assert (await two.patch(path, 2 * MIB, CONTENT[2 * MIB : 7 * MIB])).status == 204
        assert (await one.patch(path, 7 * MIB, CONTENT[7 * MIB :])).status == 204
        file_id = await two.here.file_id(path)
        assert await one.here.fetch(file_id) == CONTENT
        assert await two.here.fetch(file_id) == CONTENT
        two.assert_only_files(len(CONTENT))


# --- E3: uploads that end otherwise ---------------------------------------------------------------


async def half(s3: S3Site) -> str:
    """An upload with a part and a tail."""
    path = await s3.here.create(len(CONTENT))
    assert (await s3.patch(path, 0, CONTENT[: 7 * MIB])).status == 204
    assert len(s3.bucket.multiparts()) == len(s3.bucket.tails()) == 1
    return path


async def test_e3_a_deleted_upload_leaves_nothing(s3: S3Site) -> None:
    """E3: DELETE in the middle aborts the multipart upload and removes the tail."""
    path = await half(s3)
    assert (await s3.here.ask("DELETE", path, TUS)).status == 204
    s3.assert_only_files()


async def test_e3_an_upload_that_is_deleted_under_its_writer_leaves_nothing(s3: S3Site) -> None:
    """E3: DELETE stops a running PATCH, whose last bytes go too."""
    path = await half(s3)
    line = await begin_patch(s3.here, path, 7 * MIB, CONTENT[7 * MIB : 9 * MIB], length=len(CONTENT) - 7 * MIB)
    assert (await s3.here.ask("DELETE", path, TUS)).status == 204
    assert (await line.answer()).status == 423
    s3.assert_only_files()


async def test_e3_an_expired_upload_leaves_nothing(s3: S3Site) -> None:
    """E3: The sweep removes what an upload left whose time is over."""
    path = await half(s3)
    skip(s3, HOUR + 1)
    await s3.sweep()
    assert (await s3.here.head(path)).status == 410
    s3.assert_only_files()


async def test_e3_what_could_not_be_removed_goes_later(s3: S3Site) -> None:
    """E3: An upload that is deleted while the store is away is gone at once, and its bytes with a later sweep."""
    path = await half(s3)
    s3.faulty.down = "503"
    assert (await s3.here.ask("DELETE", path, TUS)).status == 204
    s3.faulty.down = None
    assert s3.bucket.objects()
    s3.bucket.store.age(s3.bucket.name, 2 * HOUR)
    skip(s3, HOUR + 1)
    await s3.sweep()
    s3.assert_only_files()


async def test_e3_the_sweep_spares_what_lives(s3: S3Site) -> None:
    """E3: However old the objects, an unfinished upload and a finished file stay as they are."""
    path, done = await half(s3), await known(s3, CONTENT)
    before = s3.bucket.objects()
    s3.bucket.store.age(s3.bucket.name, 2 * HOUR)
    skip(s3, HOUR - 10)
    assert (await s3.patch(path, 7 * MIB, b"")).status == 204
    s3.here.service.janitor._orphans_due = 0
    await s3.sweep()
    assert s3.bucket.objects() == before
    assert len(s3.bucket.multiparts()) == 1
    assert await s3.here.stored(done) == CONTENT
    assert (await s3.patch(path, 7 * MIB, CONTENT[7 * MIB :])).status == 204
    assert await s3.here.stored(path) == CONTENT


# --- C6: files that are refused -------------------------------------------------------------------


@pytest.mark.parametrize("size", [1000, 2 * PART + 1])
async def test_c6_a_file_that_is_refused_leaves_nothing(s3: S3Site, size: int) -> None:
    """C6: A file that has not the SHA-256 of its link is no file: its object is removed."""
    path = await s3.here.create(size, s3.here.link(sha256="0" * 64))
    assert (await s3.patch(path, 0, CONTENT[:size])).status == 460
    assert (await s3.here.head(path)).status == 410
    s3.assert_only_files()


async def test_a5_a_clients_names_are_no_keys(s3: S3Site) -> None:
    """A5: File names and metadata of a client's are in no key of the bucket."""
    names = {"filename": "../../evil.html", "key": "attachd/u_x/file"}
    metadata = ",".join(f"{name} {b64(value.encode())}" for name, value in names.items())
    fields = TUS | {"Upload-Length": "5", "Content-Type": OCTETS, "Upload-Metadata": metadata}
    answer = await s3.ask("POST", s3.here.link(), fields, b"hello")
    assert answer.status == 201
    ((key, size),) = s3.bucket.objects().items()
    upload_id = answer.headers["Location"].rpartition("/")[2]
    assert (key.split("/")[0], size) == (upload_id[:15], 5)
    assert "evil" not in key
