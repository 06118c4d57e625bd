"""Downloads of files that lie in a bucket: ranges, slow and vanished readers, and what happens when bytes are lost."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from service.clock import new_file_id
from tests.contract.buckets import some_bytes
from tests.stores.faults import Fault, cut_reply, hold, status
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store
from tests.web.harness import OCTETS, TUS, Answer, FakeClock, Line, head, path_of
from tests.web.s3_site import MIB, PREFIX, S3Site, s3_site
from tests.web.under_way import begin_patch, until

CONTENT: Final = some_bytes(6 * MIB + 7)
SIZE: Final = len(CONTENT)
LONG: Final = some_bytes(24 * MIB)
#: the largest piece that is fetched at once
PIECE: Final = 4 * MIB


@pytest.fixture
async def s3(
    tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[S3Site]:
    """A service whose wall clock the test moves."""
    async with s3_site(tmp_path, store, bucket, faulty, monkeypatch, clock=FakeClock()) as running:
        yield running


async def reader(s3: S3Site, link: str) -> Line:
    """A connection that asked for the file and takes in little by itself."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", s3.here.port))
    line = Line(*await asyncio.open_connection(sock=raw, limit=65_536))
    s3.here.lines.append(line)
    await line.send(head("GET", link, [], None))
    block = await line.reader.readuntil(b"\r\n\r\n")
    assert block.startswith(b"HTTP/1.1 200 ")
    return line


# --- G1, D1: many readers, slow ones, and those that go ------------------------------------------


async def test_g1_twenty_readers_at_once(s3: S3Site) -> None:
    """G1: Twenty parallel downloads of one file are all whole."""
    content = CONTENT[: 2 * MIB]
    link = s3.here.download_link(await s3.here.upload(content))
    answers = await asyncio.gather(*(s3.here.ask("GET", link) for _ in range(20)))
    assert [answer.body == content for answer in answers] == [True] * 20


async def test_g1_more_readers_than_memory(s3: S3Site) -> None:
    """G1: Twelve downloads that would all like to read ahead, with memory for a few, all end whole."""
    content = CONTENT[: 2 * MIB]
    link = s3.here.download_link(await s3.here.upload(content))
    s3.memory.limit = 3 * MIB
    answers = await asyncio.gather(*(s3.here.ask("GET", link) for _ in range(12)))
    assert [answer.body == content for answer in answers] == [True] * 12


async def test_d1_a_slow_reader_holds_two_pieces_and_no_call(s3: S3Site) -> None:
    """D1: A client that takes a little now and then keeps two pieces in memory, and no call, thread or connection."""
    link = s3.here.download_link(await s3.here.upload(LONG))
    s3.faulty.clear()
    before = s3.in_hand
    line = await reader(s3, link)
    taken = b""
    for _ in range(40):
        taken += await line.reader.readexactly(65_536)
        await s3.quiet()
        assert s3.in_hand - before <= 2 * PIECE
    # it stands still: one piece on its way to it, one fetched ahead
    await until(lambda: s3.in_hand > before)
    await s3.quiet()
    assert s3.faulty.count("get_object") < 6, "the rest is not fetched before it is wanted"
    other = await s3.here.ask("GET", link, {"Range": "bytes=-5"})
    assert other.body == LONG[-5:]
    taken += await line.reader.readexactly(len(LONG) - len(taken))
    assert taken == LONG
    await until(lambda: s3.in_hand == before)


async def test_d1_a_reader_that_goes_leaves_nothing(s3: S3Site) -> None:
    """D1: A client that resets in the middle gives back the memory, and the transfer is over."""
    link = s3.here.download_link(await s3.here.upload(LONG))
    before = s3.in_hand
    line = await reader(s3, link)
    await line.reader.readexactly(MIB)
    assert s3.here.service.bodies.downloads == 1
    line.reset()
    await until(lambda: s3.here.service.bodies.downloads == 0 and s3.in_hand == before)
    await s3.quiet()


async def test_d1_a_reader_that_goes_while_the_store_is_asked(s3: S3Site) -> None:
    """D1: A client that goes while a piece is fetched for it leaves nothing when the store has answered."""
    link = s3.here.download_link(await s3.here.upload(LONG))
    before = s3.in_hand
    holding = hold()
    s3.faulty.fault("get_object", nth=2, what=holding)
    line = await reader(s3, link)
    await asyncio.to_thread(holding.caught)
    line.reset()
    holding.release()
    await until(lambda: s3.here.service.bodies.downloads == 0 and s3.in_hand == before)


# --- G2: ranges -----------------------------------------------------------------------------------


async def test_g2_ranges(s3: S3Site) -> None:
    """G2: A single range is 206 with the bytes it names and no others, wherever pieces and parts begin."""
    link = s3.here.download_link(await s3.here.upload(CONTENT))
    wanted = {
        "bytes=0-0": (0, 1),
        "bytes=-7": (SIZE - 7, SIZE),
        f"bytes={SIZE - 1}-": (SIZE - 1, SIZE),
        f"bytes=5-{SIZE + 100}": (5, SIZE),
        "bytes=262143-262144": (262_143, 262_145),
        "bytes=1000-5500000": (1000, 5_500_001),
    }
    found = {}
    for asked in wanted:
        answer = await s3.here.ask("GET", link, {"Range": asked})
        assert answer.status == 206
        told = answer.headers["Content-Range"].removeprefix("bytes ").removesuffix(f"/{SIZE}").split("-")
        found[asked] = int(told[0]), int(told[1]) + 1
        assert answer.body == CONTENT[slice(*found[asked])], asked
    assert found == wanted


async def test_g2_a_range_past_the_end(s3: S3Site) -> None:
    """G2: A range that begins behind the end is 416 and asks the store nothing."""
    link = s3.here.download_link(await s3.here.upload(CONTENT))
    s3.faulty.clear()
    answer = await s3.here.ask("GET", link, {"Range": f"bytes={SIZE}-"})
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{SIZE}")
    assert s3.counted() == {}


@pytest.mark.parametrize(("right", "expected"), [(True, 206), (False, 200)])
async def test_g2_if_range(s3: S3Site, right: bool, expected: int) -> None:
    """G2: With the file's own tag in If-Range the range is sent, with another the whole file."""
    link = s3.here.download_link(await s3.here.upload(CONTENT))
    tag = (await s3.here.ask("HEAD", link)).headers["ETag"] if right else '"another"'
    answer = await s3.here.ask("GET", link, {"Range": "bytes=5-9", "If-Range": tag})
    assert answer.status == expected
    assert answer.body == (CONTENT[5:10] if right else CONTENT)


async def test_g2_an_empty_file(s3: S3Site) -> None:
    """G2: A file without bytes is 200 with none, and the store is not asked for a range of it."""
    path = await s3.here.create(0)
    s3.faulty.clear()
    answer = await s3.here.ask("GET", s3.here.download_link(await s3.here.file_id(path)))
    assert (answer.status, answer.body) == (200, b"")
    assert s3.faulty.count("get_object") == 0


# --- G3: what the store says of a file ------------------------------------------------------------


async def test_g3_the_bucket_shows_nothing_inline(s3: S3Site) -> None:
    """G3: Whoever gets at an object without us is given an attachment of no type, whatever was uploaded."""
    fields = TUS | {"Content-Type": OCTETS, "Upload-Metadata": "filetype dGV4dC9odG1s"}
    for content in (b"<script>", CONTENT):
        answer = await s3.ask("POST", s3.here.link(), fields | {"Upload-Length": str(len(content))}, content)
        assert answer.status == 201
    assert len(s3.files()) == 2
    for key in s3.files():
        found = s3.bucket.store.client().head_object(Bucket=s3.bucket.name, Key=PREFIX + key)
        assert (found["ContentType"], found["ContentDisposition"]) == ("application/octet-stream", "attachment")


# --- G4: no half files ----------------------------------------------------------------------------


async def test_g4_a_file_that_is_not_ready(s3: S3Site) -> None:
    """G4: Half an upload, and one that is finishing, is 503 with Retry-After, never bytes."""
    file_id = new_file_id()
    path = await s3.here.create(SIZE, s3.here.link(file_id=file_id))
    link = s3.here.download_link(file_id)
    await s3.patch(path, 0, CONTENT[: 3 * MIB])
    half = await s3.here.ask("GET", link)
    assert (half.status, half.slug, half.headers["Retry-After"]) == (503, "not-ready", "2")
    s3.faulty.fault("complete_multipart_upload", what=status(500), times=2)
    assert (await s3.patch(path, 3 * MIB, CONTENT[3 * MIB :])).status == 503
    finishing = await s3.here.ask("GET", link)
    assert (finishing.status, finishing.slug) == (503, "not-ready")
    await s3.sweep()
    assert (await s3.here.ask("GET", link)).body == CONTENT


async def test_g4_a_deleted_file(s3: S3Site) -> None:
    """G4: A deleted file is 410, and its object has gone."""
    answer = await s3.ask("POST", s3.here.link(), TUS | {"Upload-Length": str(SIZE), "Content-Type": OCTETS}, CONTENT)
    link = s3.here.download_link(answer.headers["Attachd-File-Id"])
    assert (await s3.here.ask("DELETE", path_of(answer.headers["Location"]), TUS)).status == 204
    assert ((await s3.here.ask("GET", link)).status, (await s3.here.ask("GET", link)).slug) == (410, "gone")
    s3.assert_only_files()


@pytest.mark.parametrize("size", [5, SIZE])
async def test_g4_an_object_that_was_lost(s3: S3Site, size: int) -> None:
    """G4: If somebody deleted the object the answer is a 5xx, not an empty or short 200."""
    link = s3.here.download_link(await s3.here.upload(CONTENT[:size]))
    ((key, _),) = s3.files().items()
    s3.bucket.store.client().delete_object(Bucket=s3.bucket.name, Key=PREFIX + key)
    answer = await s3.here.ask("GET", link)
    assert (answer.status, answer.slug) == (500, "internal")


async def test_g4_an_object_that_was_replaced_by_a_shorter_one(s3: S3Site) -> None:
    """G4: An object of another size than the ledger's is a 5xx."""
    link = s3.here.download_link(await s3.here.upload(CONTENT))
    ((key, _),) = s3.files().items()
    s3.bucket.store.client().put_object(Bucket=s3.bucket.name, Key=PREFIX + key, Body=CONTENT[:-1])
    assert (await s3.here.ask("GET", link)).status == 500


@pytest.mark.parametrize("how", ["reset", "503"])
async def test_g4_a_store_that_is_away(s3: S3Site, how: str) -> None:
    """G4: With the store away a download is 503 with Retry-After, and HEAD still tells about the file."""
    link = s3.here.download_link(await s3.here.upload(CONTENT))
    s3.faulty.down = how  # type: ignore[assignment]
    answer = await s3.here.ask("GET", link)
    assert (answer.status, answer.slug, answer.headers["Retry-After"]) == (503, "storage-unavailable", "2")
    assert (await s3.here.ask("HEAD", link)).status == 200


@pytest.mark.parametrize("what", [status(404), status(500), cut_reply(1000)], ids=["lost", "fails", "cut"])
async def test_g4_a_download_that_cannot_go_on_is_cut_off(s3: S3Site, what: Fault) -> None:
    """G4: If the store fails in the middle the connection ends short of Content-Length: nobody takes it for whole."""
    link = s3.here.download_link(await s3.here.upload(LONG))
    s3.faulty.fault("get_object", nth=3, what=what, times=None)
    line = await reader(s3, link)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await line.reader.readexactly(len(LONG))
    await until(lambda: s3.here.service.bodies.downloads == 0)
    assert s3.metric("attachd_transfer_duration_seconds_count", direction="out", outcome="error") == 1


async def test_g4_a_passing_fault_in_the_middle_is_not_seen(s3: S3Site) -> None:
    """G4: A read that fails once, or comes back short, is made again, and the download is whole."""
    link = s3.here.download_link(await s3.here.upload(LONG))
    s3.faulty.fault("get_object", nth=2, what=cut_reply(1000))
    s3.faulty.fault("get_object", nth=4, what=status(503))
    assert (await s3.here.ask("GET", link)).body == LONG


# --- G5: links that end ---------------------------------------------------------------------------


async def test_g5_a_link_may_end_while_its_download_runs(s3: S3Site) -> None:
    """G5: A download that began in time ends whole; the next one is refused as expired."""
    link = s3.here.download_link(await s3.here.upload(LONG), expires_in=2)
    line = await reader(s3, link)
    first = await line.reader.readexactly(MIB)
    assert s3.here.clock is not None
    s3.here.clock.forward(120)
    assert first + await line.reader.readexactly(len(LONG) - MIB) == LONG
    refused: Answer = await s3.here.ask("GET", link, {"Range": "bytes=5-"})
    assert (refused.status, refused.slug) == (403, "link-expired")


async def test_a_download_goes_on_while_uploads_want_the_memory(s3: S3Site) -> None:
    """Uploads that fill the memory do not keep a reader from what it needs, nor it them."""
    s3.memory.limit = 40 * MIB
    link = s3.here.download_link(await s3.here.upload(CONTENT))
    paths = [await s3.here.create(8 * MIB) for _ in range(12)]
    lines = [await begin_patch(s3.here, path, 0, LONG[: 4 * MIB], length=8 * MIB) for path in paths]
    assert (await s3.here.ask("GET", link)).body == CONTENT
    for line in lines:
        await line.send(LONG[4 * MIB : 8 * MIB])
    assert [(await line.answer()).status for line in lines] == [204] * len(lines)
