"""After a crash of the machine nothing is claimed that is not there (lessons O6, C1; contract, section 5, rule 8)."""

from __future__ import annotations

import asyncio
import io
import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from service import rechecking
from service.clock import SystemClock
from service.model import State, UploadId
from service.storage.base import StorageUnavailable
from service.storage.filesystem import FilesystemStorage
from tests.contract.buckets import some_bytes
from tests.web.harness import OCTETS, TUS, Answer, Site
from tests.web.machine import BLOCK, Machine, zero
from tests.web.sweeps import broken, finishing_with_a_file, logged, state
from tests.web.under_way import until

#: four whole blocks and a bit of a fifth, of five and a half
SENT = 4 * BLOCK + 1000
CONTENT = some_bytes(5 * BLOCK + BLOCK // 2)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(rechecking, "_AGAIN_SECONDS", 0.02)
    return Machine(tmp_path, monkeypatch)


async def begun(here: Site, *ends: int) -> str:
    """An upload of CONTENT that has come to SENT, or to the last of these ends by a request for each."""
    path = await here.create(len(CONTENT))
    at = 0
    for end in ends or (SENT,):
        assert (await here.patch(path, at, CONTENT[at:end])).status == 204
        at = end
    return path


async def checked(here: Site, path: str) -> Answer:
    """What HEAD says once it says anything; 423 with Retry-After before."""
    async with asyncio.timeout(30):
        while (answer := await here.head(path)).status == 423:
            assert int(answer.headers["Retry-After"]) >= 1
            assert "Upload-Offset" not in answer.headers
            await asyncio.sleep(0.01)
    assert answer.status == 200, answer
    return answer


async def sent(here: Site, path: str) -> bytes:
    """The content of the file, once the client has sent what the service lacks."""
    offset = (await checked(here, path)).offset
    assert (await here.patch(path, offset, CONTENT[offset:])).status == 204
    return await here.stored(path)


# --- what may be gone ---------------------------------------------------------------------------


def nothing(segment: Path) -> None:
    pass


def truncated(segment: Path) -> None:
    os.truncate(segment, 2 * BLOCK + 5)


def emptied(segment: Path) -> None:
    os.truncate(segment, 0)


def missing(segment: Path) -> None:
    segment.unlink()


def without_directory(segment: Path) -> None:
    shutil.rmtree(segment.parent)


def first_page_zero(segment: Path) -> None:
    zero(segment, 0, 4096)


def middle_page_zero(segment: Path) -> None:
    zero(segment, 3 * BLOCK - 4096, 3 * BLOCK)


def tail_zero(segment: Path) -> None:
    zero(segment, SENT - 1, SENT)


def tail_cut(segment: Path) -> None:
    os.truncate(segment, SENT - 1)


def longer(segment: Path) -> None:
    with segment.open("ab") as file:
        file.write(b"nobody's" * 20_000)


DAMAGES: tuple[tuple[Callable[[Path], None], int], ...] = (
    (nothing, SENT),
    (truncated, 2 * BLOCK),
    (emptied, 0),
    (missing, 0),
    (without_directory, 0),
    (first_page_zero, 0),
    (middle_page_zero, 2 * BLOCK),
    (tail_zero, 4 * BLOCK),
    (tail_cut, 4 * BLOCK),
    (longer, SENT),
)


@pytest.mark.parametrize(("damage", "left"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
async def test_O6_an_offset_is_what_a_crash_left(
    machine: Machine, log: io.StringIO, damage: Callable[[Path], None], left: int
) -> None:
    """O6: The offset is the end of what is there and right, to the byte where nothing is lost; the file is right."""
    async with machine.service() as here:
        path = await begun(here)
    damage(machine.segment(here.upload_id(path)))
    machine.reboot()
    async with machine.service() as here:
        assert (await checked(here, path)).offset == left
        assert await sent(here, path) == CONTENT
    lost = [(record["from_offset"], record["to_offset"]) for record in logged(log, "bytes_lost")]
    assert lost == ([] if left == SENT else [(SENT, left)])
    assert [record["count"] for record in logged(log, "uploads_suspected")] == [1]


@pytest.mark.parametrize(("damage", "left"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
async def test_C1_what_was_finishing_is_whole_or_receives_again(
    machine: Machine, damage: Callable[[Path], None], left: int
) -> None:
    """C1: With all its bytes it becomes the file without its client; else it is at what is there. No file is wrong."""
    async with machine.service() as here:
        path = await here.create(SENT)
        with broken(here, "storage", "complete", StorageUnavailable("away")):
            assert (await here.patch(path, 0, CONTENT[:SENT])).status == 503
    damage(machine.segment(here.upload_id(path)))
    machine.reboot()
    async with machine.service() as here:
        if left == SENT:
            async with asyncio.timeout(30):
                while await state(here, path) is not State.READY:
                    await asyncio.sleep(0.01)
        else:
            assert (await checked(here, path)).offset == left
            assert await state(here, path) is State.RECEIVING
            assert (await here.patch(path, left, CONTENT[left:SENT])).status == 204
        assert await here.stored(path) == CONTENT[:SENT]


async def test_O6_a_crash_in_the_first_block(machine: Machine) -> None:
    """O6: An upload of less than a block keeps its bytes if they are right, and begins anew if not."""
    async with machine.service() as here:
        kept, lost = await begun(here, 100), await begun(here, 100)
    zero(machine.segment(here.upload_id(lost)), 50, 60)
    machine.reboot()
    async with machine.service() as here:
        assert [(await checked(here, path)).offset for path in (kept, lost)] == [100, 0]
        assert await sent(here, kept) == await sent(here, lost) == CONTENT


@pytest.mark.parametrize("lose", [0, 1, 2])
async def test_O6_a_segment_of_several_is_gone(machine: Machine, lose: int) -> None:
    """O6: Of an upload in three segments what comes before the lost one counts, and new bytes go behind that."""
    ends = (BLOCK + 10, 3 * BLOCK, 4 * BLOCK + 7)
    async with machine.service() as here:
        path = await here.create(len(CONTENT))
        at = 0
        for end in ends:
            # what somebody who was overtaken left behind makes the next request begin a segment
            for segment in machine.segments(here.upload_id(path)):
                await asyncio.to_thread(longer, segment)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("service.storage.filesystem.appender.DiskAppender._trust", lambda _: None)
                assert (await here.patch(path, at, CONTENT[at:end])).status == 204
            at = end
        ledger = await here.service.metadata.ledger(here.upload_id(path))
    assert [part.end for part in ledger] == list(ends)
    (machine.data / "uploads" / ledger[lose].key[2:4] / ledger[lose].key).unlink()
    machine.reboot()
    async with machine.service() as here:
        assert (await checked(here, path)).offset == (0, BLOCK, 3 * BLOCK)[lose]
        assert await sent(here, path) == CONTENT


async def test_O6_a_second_crash_is_another_check(machine: Machine) -> None:
    """O6: What was found right once is looked for again after the next crash, and what was sent since as well."""
    async with machine.service() as here:
        path = await begun(here)
    machine.reboot()
    async with machine.service() as here:
        assert (await checked(here, path)).offset == SENT
        assert (await here.patch(path, SENT, CONTENT[SENT : 5 * BLOCK + 1])).status == 204
    zero(machine.segment(here.upload_id(path)), 4 * BLOCK + 900, 4 * BLOCK + 1100)
    machine.reboot()
    async with machine.service() as here:
        assert (await checked(here, path)).offset == 4 * BLOCK
        assert await sent(here, path) == CONTENT


async def test_O6_a_crash_in_the_middle_of_the_check(machine: Machine) -> None:
    """O6: A suspect that nobody came to check stays one over a kill, and over an orderly stop."""
    async with machine.service() as here:
        path = await begun(here)
    truncated(machine.segment(here.upload_id(path)))
    machine.reboot()
    for orderly in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            gate(patch)
            async with machine.service(orderly=orderly) as here:
                assert (await here.head(path)).status == 423
    async with machine.service() as here:
        assert (await checked(here, path)).offset == 2 * BLOCK


# --- commits that are gone ----------------------------------------------------------------------


@pytest.mark.parametrize("ends", [(), (3 * BLOCK + 5,)], ids=["from nothing", "from the middle"])
async def test_O6_a_file_whose_commits_are_gone(machine: Machine, ends: tuple[int, ...]) -> None:
    """O6: An upload whose file was made, while the crash took the commits since, goes on where the record is."""
    async with machine.service() as here:
        path = await here.create(len(CONTENT))
        if ends:
            assert (await here.patch(path, 0, CONTENT[: ends[0]])).status == 204
        await asyncio.to_thread(machine.copy_database, machine.folder / "older")
        offset = (await here.head(path)).offset
        assert (await here.patch(path, offset, CONTENT[offset:])).status == 204
        assert any(name.startswith("files/") for name in here.leftovers())
    machine.restore_database(machine.folder / "older")
    machine.reboot()
    async with machine.service() as here:
        assert (await checked(here, path)).offset == offset
        # another client's bytes may be others
        other = CONTENT[:offset] + bytes(len(CONTENT) - offset)
        assert (await here.patch(path, offset, other[offset:])).status == 204
        assert await here.stored(path) == other
        assert [name.partition("/")[0] for name in here.leftovers()] == ["files"]


async def test_C1_a_file_that_was_made_and_not_recorded(machine: Machine) -> None:
    """C1: An upload that was finishing, with its file in place, is ready after the crash."""
    async with machine.service() as here:
        path = await finishing_with_a_file(here)
    machine.reboot()
    async with machine.service() as here:
        assert (await checked(here, path)).offset == 5
        assert await here.stored(path) == b"hello"


async def test_C1_a_damaged_file_that_was_not_recorded_is_none(machine: Machine) -> None:
    """C1: What `complete` made before the crash is checked as well before it is recorded."""
    async with machine.service() as here:
        path = await finishing_with_a_file(here)
    upload_id = here.upload_id(path)
    zero(machine.data / "files" / upload_id[2:4] / upload_id, 0, 2)
    machine.reboot()
    async with machine.service() as here:
        assert (await checked(here, path)).offset == 0
        assert (await here.patch(path, 0, b"hello")).status == 204
        assert await here.stored(path) == b"hello"


async def test_O6_a_ready_partial_is_as_durable_as_a_file(machine: Machine) -> None:
    """O6: The bytes of a partial are synced before it is ready, so no crash makes it suspect, nor the final of it."""
    synced: list[str] = []
    sync = os.fsync

    def noted(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        sync(fd)

    async with machine.service() as here:
        part = await here.create(5, Upload_Concat="partial")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", noted)
            assert (await here.patch(part, 0, b"hello")).status == 204
        upload_id = here.upload_id(part)
        assert synced[-2:] == [machine.segment(upload_id).name, upload_id[2:4]]
    machine.reboot()
    async with machine.service() as here:
        assert (await here.head(part)).offset == 5
        answer = await here.post(None, here.link(), Upload_Concat=f"final;{part}")
        path = "/files/" + answer.headers["Location"].rpartition("/")[2]
        assert await here.stored(path) == b"hello"


# --- when there is nothing to doubt --------------------------------------------------------------


async def test_after_an_orderly_stop_a_reboot_costs_nothing(machine: Machine, log: io.StringIO) -> None:
    """What was synced at the end of a run is not doubted, and HEAD answers at once."""
    async with machine.service(orderly=True) as here:
        path = await begun(here)
    machine.reboot()
    async with machine.service() as here:
        assert (await here.head(path)).offset == SENT
    assert logged(log, "uploads_suspected") == []


async def test_a_kill_of_all_processes_costs_nothing(machine: Machine, log: io.StringIO) -> None:
    """While the machine stays up its kernel has the bytes, however the service ended."""
    async with machine.service() as here:
        path = await begun(here)
    async with machine.service() as here:
        assert (await here.head(path)).offset == SENT
    assert logged(log, "uploads_suspected") == []


@pytest.mark.parametrize("durability", ["always", "none"])
async def test_other_durabilities_take_nothing_to_doubt(machine: Machine, log: io.StringIO, durability: str) -> None:
    """Under `always` bytes were synced before they were acknowledged, under `none` nothing was promised."""
    async with machine.service(durability=durability) as here:
        path = await begun(here)
    machine.reboot()
    async with machine.service(durability=durability) as here:
        assert (await here.head(path)).offset == SENT
    assert logged(log, "uploads_suspected") == []


async def test_a_kernel_that_does_not_tell_which_boot_it_is(machine: Machine, log: io.StringIO) -> None:
    """Without a boot id each start after one that did not sync is a check, which costs no byte that is there."""
    machine.boot_id.unlink()
    async with machine.service() as here:
        path = await begun(here)
    async with machine.service() as here:
        assert (await checked(here, path)).offset == SENT
    assert len(logged(log, "uploads_suspected")) == 1


async def test_a_stop_with_a_damaged_directory_ends(machine: Machine, log: io.StringIO) -> None:
    """An end at which not all can be synced is an end, and the next boot checks."""
    async with machine.service(orderly=True) as here:
        path = await begun(here)
        await asyncio.to_thread(shutil.rmtree, machine.data / "uploads")
    assert len(logged(log, "sync_left_out")) == 1
    machine.reboot()
    async with machine.service() as here:
        assert (await checked(here, path)).offset == 0


# --- until it was checked ------------------------------------------------------------------------


class Gate:
    """Reading back waits until it is opened."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        #: keys of the segments that somebody began to read
        self.asked: list[str] = []


def gate(patch: pytest.MonkeyPatch, *, free: Callable[[str], bool] = lambda _: False) -> Gate:
    """From now on reading back an upload waits, unless its first segment is `free`."""
    made, real = Gate(), FilesystemStorage.read_upload

    async def gated(self: FilesystemStorage, ledger: Any, start: int, end: int) -> AsyncIterator[bytes]:
        made.asked.append(ledger[0].key)
        if not free(ledger[0].key):
            await made.open.wait()
        async for piece in real(self, ledger, start, end):
            yield piece

    patch.setattr(FilesystemStorage, "read_upload", gated)
    return made


async def test_nobody_is_told_anything_of_a_suspect(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """HEAD, PATCH, GET and a repeated creation are 423 with Retry-After until it was checked, and HEAD never else."""
    async with machine.service() as here:
        link = here.link()
        path = await here.create(len(CONTENT), link)
        assert (await here.patch(path, 0, CONTENT[:SENT])).status == 204
    machine.reboot()
    held = gate(monkeypatch)
    async with machine.service() as here:
        for answer in (
            await here.head(path),
            await here.patch(path, SENT, CONTENT[SENT:]),
            await here.patch(path, SENT, b""),
            await here.ask("GET", path),
            await here.ask("GET", path + "?wait=1"),
            await here.post(len(CONTENT), link),
            await here.ask("HEAD", link, TUS),
        ):
            assert (answer.status, int(answer.headers["Retry-After"])) == (423, 1)
            assert "Upload-Offset" not in answer.headers
        held.open.set()
        assert (await checked(here, path)).offset == SENT
        assert (await here.post(len(CONTENT), link)).offset == SENT


async def test_a_suspect_can_be_terminated(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """DELETE has the upload at the end of a block of the check, and nothing is left of it."""
    async with machine.service() as here:
        path = await begun(here)
    machine.reboot()
    held = gate(monkeypatch)
    async with machine.service() as here:
        await until(lambda: held.asked != [])
        holder = here.service.leases._holders[here.upload_id(path)]
        stops: list[None] = []
        stop = holder.stop
        holder.stop = lambda: stops.append(stop())
        deleting = asyncio.ensure_future(here.ask("DELETE", path, TUS))
        await until(lambda: stops != [])
        held.open.set()
        assert (await deleting).status == 204
        assert here.leftovers() == []
        assert (await here.head(path)).status == 410


async def test_who_asks_has_its_turn_first(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the check of one upload takes its time, one that a client asks for is checked, without the rest."""
    async with machine.service() as here:
        paths = [await begun(here, 1000) for _ in range(5)]
    asked = here.upload_id(paths[-1])
    machine.reboot()
    held = gate(monkeypatch, free=lambda key: key.startswith(asked))
    async with machine.service() as here:
        await until(lambda: held.asked != [])
        assert (await checked(here, paths[-1])).offset == 1000
        assert {key[:28] for key in held.asked} == {here.upload_id(paths[0]), asked}
        held.open.set()
        for path in paths:
            assert (await checked(here, path)).offset == 1000


async def test_all_are_checked_though_nobody_asks(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the background every suspect has its turn, also behind a page, and one that cannot be read stops no other."""
    monkeypatch.setattr(rechecking, "_BATCH", 2)
    async with machine.service() as here:
        paths = [await begun(here, 1000) for _ in range(5)]
        stuck = here.upload_id(paths[1])
    machine.reboot()
    real, broken_disk = FilesystemStorage.read_upload, True

    async def read(self: FilesystemStorage, ledger: Any, start: int, end: int) -> AsyncIterator[bytes]:
        if broken_disk and ledger[0].key.startswith(stuck):
            raise StorageUnavailable("a bad sector")
        async for piece in real(self, ledger, start, end):
            yield piece

    monkeypatch.setattr(FilesystemStorage, "read_upload", read)
    async with machine.service() as here:
        assert await suspects(here, [stuck])
        assert (await here.head(paths[1])).status == 423
        broken_disk = False
        assert await suspects(here, [])
        assert (await here.head(paths[1])).offset == 1000


async def suspects(here: Site, expected: list[UploadId]) -> bool:
    """Waits until these are the suspects."""
    async with asyncio.timeout(30):
        while [upload.id for upload in await here.service.metadata.suspect_uploads(limit=10)] != expected:
            await asyncio.sleep(0.01)
    return True


async def test_processes_share_the_check(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two processes one reads an upload, the other says 423 meanwhile; both tell the same in the end."""
    async with machine.service() as here:
        path = await begun(here)
    machine.reboot()
    held = gate(monkeypatch)
    async with machine.service() as one, machine.service(alone=False) as other:
        await until(lambda: held.asked != [])
        for _ in range(5):
            assert [(await each.head(path)).status for each in (one, other)] == [423, 423]
        assert len(held.asked) == 1
        held.open.set()
        assert (await checked(other, path)).offset == (await checked(one, path)).offset == SENT
        assert len(held.asked) == 5


async def test_a_suspect_expires(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweeper takes a suspect whose time is over, as any upload."""
    clock = SystemClock()
    async with machine.service() as here:
        path = await begun(here)
        lives = (await here.service.metadata.uploads([here.upload_id(path)]))[here.upload_id(path)].expires_at
    machine.reboot()

    async def away(*_: Any, **__: Any) -> AsyncIterator[bytes]:
        raise StorageUnavailable("away")
        yield b""

    monkeypatch.setattr(FilesystemStorage, "read_upload", away)
    monkeypatch.setattr(SystemClock, "now", lambda _: lives + 1)
    assert clock.now() == lives + 1
    async with machine.service() as here:
        await here.service.janitor.sweep()
        assert await state(here, path) is State.EXPIRED
        assert await suspects(here, [])
        assert (await here.head(path)).status == 410


async def test_a_creation_with_a_body_meets_no_suspect(machine: Machine) -> None:
    """New uploads, and files that are there, are served while others are being checked."""
    async with machine.service() as here:
        path = await begun(here)
        file = await here.upload(b"kept")
    machine.reboot()
    with pytest.MonkeyPatch.context() as patch:
        held = gate(patch)
        async with machine.service() as here:
            await until(lambda: held.asked != [])
            assert await here.fetch(file) == b"kept"
            headers = TUS | {"Upload-Length": "3", "Content-Type": OCTETS}
            assert (await here.ask("POST", here.link(), headers, b"new")).status == 201
            assert (await here.head(path)).status == 423
