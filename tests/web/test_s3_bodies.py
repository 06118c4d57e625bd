"""Bodies on their way to a bucket: a part that cannot be stored, checksums, writers that follow each other, a stop."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from service.leases import PATIENCE_SECONDS
from tests.contract.buckets import Waits, some_bytes
from tests.stores.faults import cut_request, hold, status
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store
from tests.web.harness import OCTETS, TUS, b64
from tests.web.s3_site import MIB, PART, S3Site, at_most, s3_site
from tests.web.under_way import begin_patch, held, until


@pytest.fixture
async def s3(
    tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[S3Site]:
    async with s3_site(tmp_path, store, bucket, faulty, monkeypatch) as running:
        yield running


# --- O1: a part that cannot be stored -------------------------------------------------------------


async def test_o1_the_offset_ends_before_a_part_that_failed(s3: S3Site) -> None:
    """O1: Part 3 fails for good while a later one is stored: 503, two parts by HEAD, and the client goes on there."""
    content = some_bytes(6 * PART)
    path = await s3.here.create(len(content))

    def fourth_is_stored() -> None:
        while not any(call.part_number == 4 and call.status == 200 and call.over for call in s3.faulty.calls):
            time.sleep(0.002)

    s3.faulty.fault("upload_part", part_number=3, what=Waits(status(500), fourth_is_stored), times=None)
    answer = await s3.patch(path, 0, content)
    assert (answer.status, answer.slug, answer.headers["Retry-After"]) == (503, "storage-unavailable", "5")
    assert answer.offset == 2 * PART
    assert (await s3.here.head(path)).offset == 2 * PART
    assert s3.faulty.count("list_parts") == 0
    s3.faulty.clear()
    assert (await s3.patch(path, 2 * PART, content[2 * PART :])).status == 204
    assert await s3.here.stored(path) == content
    s3.assert_only_files(len(content))


async def test_o1_a_tail_that_cannot_be_stored_costs_only_itself(s3: S3Site) -> None:
    """O1: The end of a body that fills no part cannot be stored: 503, and the whole parts before it are kept."""
    content = some_bytes(PART + 3 * MIB)
    path = await s3.here.create(2 * len(content))
    s3.faulty.fault("put_object", what=status(503), times=None)
    answer = await s3.patch(path, 0, content)
    assert (answer.status, answer.offset, answer.headers["Retry-After"]) == (503, PART, "5")
    assert (await s3.here.head(path)).offset == PART


async def test_o1_passing_trouble_is_not_the_clients(s3: S3Site) -> None:
    """O1: Each call fails once, and the client hears nothing of it."""
    content = some_bytes(2 * PART + 5)
    path = await s3.here.create(len(content))
    for kind in ("create_multipart_upload", "complete_multipart_upload", "head_object"):
        s3.faulty.fault(kind, what=status(503))
    for number in (1, 2, 3):
        s3.faulty.fault("upload_part", part_number=number, what=status(500))
    assert (await s3.patch(path, 0, content)).status == 204
    assert await s3.here.stored(path) == content


async def test_o1_a_part_that_stalls_is_sent_again_as_it_came(s3: S3Site) -> None:
    """O1: A store that takes no part of an upload while others go through, then resets, has each one's own bytes.

    The others were received into whatever buffers were free meanwhile.
    """
    content = some_bytes(3 * PART)
    path = await s3.here.create(len(content))
    name = s3.here.upload_id(path)[:15]
    stalled = threading.Event()
    s3.faulty.fault("upload_part", what=Waits(cut_request(MIB), stalled.wait), times=3, key=name)
    slow = asyncio.ensure_future(s3.patch(path, 0, content))
    await s3.wait_for("upload_part", 3)
    assert s3.memory.used == len(content)
    others = [some_bytes(2 * PART + MIB + number, seed=number + 2) for number in range(3)]
    for other in others:
        through = await s3.here.create(len(other))
        assert (await s3.patch(through, 0, other)).status == 204
        assert await s3.here.stored(through) == other
    assert not slow.done()
    stalled.set()
    assert (await slow).status == 204
    assert await s3.here.stored(path) == content


# --- O7: bodies with a checksum -------------------------------------------------------------------


def sha256(body: bytes) -> str:
    return f"sha256 {b64(hashlib.sha256(body).digest())}"


async def test_o7_a_wrong_checksum_takes_all_of_its_body(s3: S3Site) -> None:
    """O7: A body of several parts that does not match: 460, the offset stays, and nothing of it is in the file."""
    content, other = some_bytes(18 * MIB, 1), some_bytes(12 * MIB, 2)
    path = await s3.here.create(len(content))
    assert (await s3.patch(path, 0, content[: 6 * MIB])).status == 204
    answer = await s3.patch(path, 6 * MIB, other, Upload_Checksum=sha256(content[6 * MIB :]))
    assert (answer.status, answer.slug) == (460, "checksum-mismatch")
    assert (await s3.here.head(path)).offset == 6 * MIB
    answer = await s3.patch(path, 6 * MIB, content[6 * MIB :], Upload_Checksum=sha256(content[6 * MIB :]))
    assert (answer.status, answer.offset) == (204, len(content))
    assert await s3.here.stored(path) == content
    s3.assert_only_files(len(content))


async def test_o7_a_checked_body_that_is_cut_never_was(s3: S3Site) -> None:
    """O7: A connection that breaks in the middle of a body with a checksum leaves the offset where it was."""
    content = some_bytes(18 * MIB)
    path = await s3.here.create(len(content))
    assert (await s3.patch(path, 0, content[: 6 * MIB])).status == 204
    body = content[6 * MIB :]
    line = await begin_patch(s3.here, path, 6 * MIB, body[: 8 * MIB], length=len(body), Upload_Checksum=sha256(body))
    # parts of it are stored by then
    await s3.wait_for("upload_part", 2, over=True)
    line.reset()
    await s3.released(path)
    assert (await s3.here.head(path)).offset == 6 * MIB
    assert (await s3.patch(path, 6 * MIB, body, Upload_Checksum=sha256(body))).status == 204
    assert await s3.here.stored(path) == content
    s3.assert_only_files(len(content))


async def _manifest(s3: S3Site, path: str) -> dict[str, Any]:
    """Of the file that the upload has become, without what is the file's own name."""
    link = s3.here.download_link((await s3.upload_of(path)).file_id)
    found: dict[str, Any] = (await s3.here.ask("GET", link.replace("?", "/manifest?"))).json
    found.pop("file_id")
    return found


async def test_o7_the_root_does_not_tell_how_often_the_upload_was_taken_up_again(s3: S3Site) -> None:
    """O7: Sent in four requests that end in the middle of blocks, by processes that have nothing at hand, a file has
    the digests that it has when it is sent at once.
    """
    content = some_bytes(11 * MIB + 7)
    at_once, resumed = await s3.here.create(len(content)), await s3.here.create(len(content))
    assert (await s3.patch(at_once, 0, content)).status == 204
    for start, end in pairwise([0, 3 * MIB + 1, 6 * MIB + 500_000, 9 * MIB + 2, len(content)]):
        s3.memory.forget_all("")
        assert (await s3.patch(resumed, start, content[start:end])).status == 204
    manifest = await _manifest(s3, resumed)
    assert len(manifest["blocks"]["xxh128"]) == 12
    assert manifest == await _manifest(s3, at_once)


@pytest.mark.parametrize("right", [True, False])
async def test_o7_a_checksum_in_the_trailer(s3: S3Site, right: bool) -> None:
    """O7: A checksum that comes behind the body decides about all of it."""
    content = some_bytes(12 * MIB)
    path = await s3.here.create(len(content))
    fields = TUS | {"Upload-Offset": "0", "Content-Type": OCTETS, "Trailer": "Upload-Checksum"}
    trailers = {"Upload-Checksum": sha256(content if right else content[1:])}
    answer = await s3.ask("PATCH", path, fields, content, trailers=trailers)
    assert answer.status == (204 if right else 460)
    assert (await s3.here.head(path)).offset == (len(content) if right else 0)
    if not right:
        assert (await s3.patch(path, 0, content)).status == 204
    assert await s3.here.stored(path) == content
    s3.assert_only_files(len(content))


# --- N: writers that follow each other ------------------------------------------------------------


async def test_T_0D1_a_silent_writer_makes_way_and_its_bytes_are_kept(s3: S3Site) -> None:
    """A PATCH that fell silent in the middle of a part is taken over, not waited for, and its bytes count."""
    content = some_bytes(12 * MIB)
    path = await s3.here.create(len(content))
    older = await begin_patch(s3.here, path, 0, content[: 6 * MIB], length=len(content))
    with at_most(20):
        stale = await s3.patch(path, 0, b"")
    assert (stale.status, stale.offset) == (409, 6 * MIB)
    assert (await older.answer()).status == 423
    assert (await s3.patch(path, 6 * MIB, content[6 * MIB :])).status == 204
    assert await s3.here.stored(path) == content
    s3.assert_only_files(len(content))


async def test_T_0D2_a_writer_whose_store_hangs(s3: S3Site) -> None:
    """A newcomer to a PATCH that waits for the store hears 423 soon, and goes on when the store does."""
    content = some_bytes(12 * MIB)
    path = await s3.here.create(len(content))
    s3.here.service.leases._patience_seconds = PATIENCE_SECONDS
    holding = hold()
    s3.faulty.fault("upload_part", what=holding)
    older = await begin_patch(s3.here, path, 0, content[: 6 * MIB], length=len(content))
    await asyncio.to_thread(holding.caught)
    with at_most(20):
        refused = await s3.patch(path, 0, b"")
    assert (refused.status, refused.slug, refused.headers["Retry-After"]) == (423, "locked", "1")
    assert (await s3.here.head(path)).status in {200, 423}
    holding.release()
    answer = await older.answer()
    assert (answer.status, answer.offset) == (423, 6 * MIB)
    await until(lambda: not held(s3.here, path))
    assert (await s3.patch(path, 6 * MIB, content[6 * MIB :])).status == 204
    assert await s3.here.stored(path) == content


async def test_d3_a_client_that_went_in_the_middle_of_a_part(s3: S3Site) -> None:
    """D3: What came before a reset is a tail in the bucket once the request is over; the next one goes on behind it."""
    content = some_bytes(12 * MIB)
    path = await s3.here.create(len(content))
    line = await begin_patch(s3.here, path, 0, content[: 7 * MIB], length=len(content))
    line.reset()
    await s3.released(path)
    assert (await s3.here.head(path)).offset == 7 * MIB
    assert [s3.bucket.objects()[tail] for tail in s3.bucket.tails()] == [2 * MIB]
    assert (await s3.patch(path, 7 * MIB, content[7 * MIB :])).status == 204
    assert await s3.here.stored(path) == content
    s3.assert_only_files(len(content))


# --- S1: a stop -----------------------------------------------------------------------------------


async def test_s1_a_stop_stores_what_was_received(
    tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S1: A PATCH that is cut off by the stop is 503 with all of its bytes, and the next start goes on there."""
    content = some_bytes(12 * MIB)
    async with s3_site(tmp_path, store, bucket, faulty, monkeypatch) as s3:
        path = await s3.here.create(len(content))
        line = await begin_patch(s3.here, path, 0, content[: 6 * MIB], length=len(content))
        stopping = asyncio.ensure_future(s3.here.service.stop())
        answer = await line.answer()
        assert (answer.status, answer.slug, answer.offset) == (503, "draining", 6 * MIB)
        await stopping
        assert [s3.bucket.objects()[tail] for tail in s3.bucket.tails()] == [MIB]
    async with s3_site(tmp_path, store, bucket, faulty, monkeypatch) as s3:
        assert (await s3.here.head(path)).offset == 6 * MIB
        assert (await s3.patch(path, 6 * MIB, content[6 * MIB :])).status == 204
        assert await s3.here.stored(path) == content
        s3.assert_only_files(len(content))
