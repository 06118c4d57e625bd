"""What the store is asked, to the call: each costs time, and money where somebody else runs the store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.buckets import some_bytes
from tests.stores.calls import Kind
from tests.stores.faults import Fault, cut_request, error, lose_reply, slow_down, status
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store
from tests.web.harness import OCTETS, TUS
from tests.web.s3_site import MIB, S3Site, s3_site

SMALL = some_bytes(64 * 1024)
CONTENT = some_bytes(12 * MIB)


@pytest.fixture
async def s3(
    tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[S3Site]:
    async with s3_site(tmp_path, store, bucket, faulty, monkeypatch) as running:
        yield running


async def test_a_small_file_is_one_call(s3: S3Site) -> None:
    """A file that comes with its creation is one PutObject: not created, looked at or tidied up besides."""
    file_id = await s3.here.upload(SMALL)
    assert s3.counted() == {"put_object": 1}
    assert await s3.here.fetch(file_id) == SMALL


async def test_a_small_plain_put_is_one_call(s3: S3Site) -> None:
    """The same holds for a plain PUT."""
    answer = await s3.here.ask("PUT", s3.here.link(), {}, SMALL)
    assert answer.status == 201
    assert s3.counted() == {"put_object": 1}
    assert await s3.here.fetch(answer.headers["Attachd-File-Id"]) == SMALL


async def test_a_created_upload_costs_nothing_before_its_bytes_come(s3: S3Site) -> None:
    """Creation, HEAD and the status ask the store nothing."""
    path = await s3.here.create(len(CONTENT))
    assert (await s3.here.head(path)).status == 200
    assert (await s3.here.ask("GET", path)).status == 200
    assert s3.counted() == {}


async def test_a_file_in_one_patch(s3: S3Site) -> None:
    """Three parts are three calls, with one to begin, one to complete and one to look at what came of it."""
    path = await s3.here.create(len(CONTENT))
    assert (await s3.patch(path, 0, CONTENT)).status == 204
    assert s3.counted() == {
        "create_multipart_upload": 1,
        "upload_part": 3,
        "complete_multipart_upload": 1,
        "head_object": 1,
    }
    assert (await s3.here.head(path)).offset == len(CONTENT)
    assert s3.counted() == {
        "create_multipart_upload": 1,
        "upload_part": 3,
        "complete_multipart_upload": 1,
        "head_object": 1,
    }, "HEAD asks nothing"


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_resume_with_a_tail(s3: S3Site, restarted: bool) -> None:
    """A resume in the middle of a part costs the tail's way to the bucket, back only after a restart, and a look."""
    path = await s3.here.create(len(CONTENT))
    assert (await s3.patch(path, 0, CONTENT[: 6 * MIB])).status == 204
    assert s3.counted() == {"create_multipart_upload": 1, "upload_part": 1, "put_object": 1}
    if restarted:
        (tail,) = s3.bucket.tails()
        s3.memory.forget(tail)
    s3.faulty.clear()
    assert (await s3.patch(path, 6 * MIB, CONTENT[6 * MIB :])).status == 204
    assert s3.counted() == {
        "upload_part": 2,
        "complete_multipart_upload": 1,
        "delete_object": 1,
        # before and after completing, and to read the first bytes, which tell the type
        "head_object": 3,
        "get_object": 2 if restarted else 1,
        # what earlier requests may have left
        "list_objects": 1,
        "list_multipart_uploads": 1,
    }
    assert await s3.here.stored(path) == CONTENT


async def test_o5_many_small_patches(s3: S3Site) -> None:
    """O5: In 1 MiB PATCHes a file costs three calls for each at most, and no byte is put more than twice or so."""
    content = some_bytes(20 * MIB)
    path = await s3.here.create(len(content))
    for at in range(0, len(content), MIB):
        assert (await s3.patch(path, at, content[at : at + MIB])).status == 204
    counted = s3.counted()
    assert sum(counted.values()) <= 3 * 20
    assert counted == {
        "create_multipart_upload": 1,
        "put_object": 16,
        "upload_part": 4,
        "delete_object": 16,
        "complete_multipart_upload": 1,
        "head_object": 3,
        "get_object": 1,
        "list_objects": 1,
        "list_multipart_uploads": 1,
    }
    put = sum(call.bytes_sent for call in s3.faulty.calls if call.kind in {"put_object", "upload_part"})
    assert put <= 2.1 * len(content)
    assert await s3.here.stored(path) == content


async def test_a_download(s3: S3Site) -> None:
    """A download is a look at the object and one ranged read for each piece, of which the first is small."""
    link = s3.here.download_link(await s3.here.upload(CONTENT))
    s3.faulty.clear()
    assert (await s3.here.ask("HEAD", link)).status == 200
    assert s3.counted() == {}, "the ledger knows"
    assert (await s3.here.ask("GET", link)).body == CONTENT
    assert s3.counted() == {"head_object": 1, "get_object": 5}
    s3.faulty.clear()
    answer = await s3.here.ask("GET", link, {"Range": "bytes=5-1004"})
    assert answer.body == CONTENT[5:1005]
    assert s3.counted() == {"head_object": 1, "get_object": 1}


async def test_deleting_a_file(s3: S3Site) -> None:
    """A deleted upload leaves nothing, at the price of two looks and a call for each object."""
    answer = await s3.ask("POST", s3.here.link(), TUS | {"Upload-Length": "5", "Content-Type": OCTETS}, b"hello")
    s3.faulty.clear()
    path = "/files/" + answer.headers["Location"].rpartition("/")[2]
    assert (await s3.here.ask("DELETE", path, TUS)).status == 204
    assert s3.counted() == {"list_objects": 1, "list_multipart_uploads": 1, "delete_object": 1}
    s3.assert_only_files()


async def test_each_attempt_is_counted_by_how_it_ended(s3: S3Site) -> None:
    """Contract, section 10: every attempt of a call is counted once, by S3's name and outcome, and timed."""

    def counted(operation: str, outcome: str) -> float:
        return s3.metric("attachd_storage_requests_total", backend="s3", operation=operation, outcome=outcome)

    def timed(operation: str, outcome: str) -> float:
        name = "attachd_storage_request_duration_seconds_count"
        return s3.metric(name, backend="s3", operation=operation, outcome=outcome)

    wrong: list[tuple[Kind, str, Fault]] = [
        ("put_object", "throttled", slow_down()),
        ("upload_part", "unavailable", status(500)),
        ("complete_multipart_upload", "unavailable", cut_request(0)),
        ("head_object", "short", status(404)),
        ("list_objects", "error", error("AccessDenied", 403)),
        ("delete_object", "unavailable", lose_reply()),
    ]
    kinds: list[Kind] = [
        "put_object", "get_object", "head_object", "delete_object", "list_objects", "list_multipart_uploads",
        "create_multipart_upload", "upload_part", "complete_multipart_upload",
    ]  # fmt: skip
    outcomes = ("ok", "throttled", "unavailable", "short", "full", "error", "cancelled")
    before = {(kind, outcome): counted(kind, outcome) for kind in kinds for outcome in outcomes}
    times = {key: timed(*key) for key in before}
    for kind, _, what in wrong:
        s3.faulty.fault(kind, what=what)
    path = await s3.here.create(len(CONTENT))
    assert (await s3.patch(path, 0, CONTENT[: 3 * MIB])).status == 204
    assert (await s3.patch(path, 3 * MIB, CONTENT[3 * MIB :])).status == 204
    assert await s3.here.stored(path) == CONTENT
    more = {key: counted(*key) - before[key] for key in before}
    for kind, outcome, _ in wrong:
        assert more[kind, outcome] == 1
    for kind in kinds:
        assert sum(more[kind, outcome] for outcome in outcomes) == s3.faulty.count(kind) > 0
    assert {key: timed(*key) - times[key] for key in before} == more
