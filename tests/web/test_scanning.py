"""Files are looked through for viruses before they are ready: what clients, operators and consumers see of it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service import scanning, uploads
from service.fsck import Fsck
from service.model import FileId, State, Verdict
from service.storage.base import StorageUnavailable
from tests.scanners.double import EICAR, SIGNATURE, Double
from tests.web.harness import OCTETS, TUS, Answer, FakeClock, Site, path_of, site
from tests.web.sweeps import DAY, HOUR, age, logged, replaced, state
from tests.web.traces import events
from tests.web.under_way import SteppedClock, until

MIB = 2**20
INFECTED = bytes(1000) + EICAR + bytes(1000)


@pytest.fixture
async def clamd() -> AsyncIterator[Double]:
    """A scanner that works, until a test says otherwise."""
    async with Double().serving() as double:
        yield double


@asynccontextmanager
async def scanned(folder: Path, clamd: Double, clock: FakeClock | None = None, **changes: Any) -> AsyncIterator[Site]:
    """A service that has its files scanned; patient for two tenths of a second."""
    async with site(folder, clock=clock or SteppedClock(), clamd=clamd.address, **changes) as running:
        yield running


@pytest.fixture
async def here(tmp_path: Path, clamd: Double) -> AsyncIterator[Site]:
    """A service with that scanner, which waits for it where it fails."""
    async with scanned(tmp_path, clamd) as running:
        yield running


@pytest.fixture
async def lax(tmp_path: Path, clamd: Double) -> AsyncIterator[Site]:
    """A service that takes files unscanned where the scanner fails."""
    async with scanned(tmp_path, clamd, scan_failure="open") as running:
        yield running


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request waits but a moment for a scan."""
    monkeypatch.setattr(uploads, "SCAN_PATIENCE_SECONDS", 0.1)


def short(here: Site, seconds: float = 0.2) -> None:
    """A scan is given up after so long."""
    judging = here.service.context.uploads._finisher._scanning
    assert judging is not None
    judging._scan_seconds = seconds


async def verdict(here: Site, file_id: str) -> Verdict:
    """What is recorded of the file."""
    file = await here.service.metadata.file(FileId(file_id))
    assert file is not None
    return file.verdict


def told(here: Site, kind: str) -> list[dict[str, Any]]:
    """The data of the events of one type."""
    return [data for each, data in events(here) if each == kind]


def counted(here: Site, outcome: str) -> float | None:
    return here.service.metrics.registry.get_sample_value("attachd_scans_total", {"verdict": outcome})


# --- the ways in which a file comes to its end ----------------------------------------------


async def by_patch(here: Site, content: bytes) -> tuple[str, Answer]:
    path = await here.create(len(content))
    await here.patch(path, 0, content[:7])
    return path, await here.patch(path, 7, content[7:])


async def by_post(here: Site, content: bytes) -> tuple[str, Answer]:
    link = here.link()
    headers = TUS | {"Upload-Length": str(len(content)), "Content-Type": OCTETS}
    answer = await here.ask("POST", link, headers, content)
    made = await here.service.context.uploads._metadata.unfinished_uploads(limit=2)
    location = answer.headers.get("Location")
    return path_of(location) if location else "/files/" + made[0].id if made else link, answer


async def by_put(here: Site, content: bytes) -> tuple[str, Answer]:
    link = here.link()
    answer = await here.ask("PUT", link, {}, content)
    return path_of(answer.headers["Location"]) if "Location" in answer.headers else link, answer


async def by_joining(here: Site, content: bytes) -> tuple[str, Answer]:
    partials = []
    for piece in (content[:1040], content[1040:]):
        partials.append(await here.create(len(piece), Upload_Concat="partial"))
        assert (await here.patch(partials[-1], 0, piece)).status == 204
    answer = await here.post(None, Upload_Concat="final;" + " ".join(partials))
    return path_of(answer.headers["Location"]) if "Location" in answer.headers else "", answer


WAYS = [by_patch, by_post, by_put, by_joining]
Way = Callable[[Site, bytes], Awaitable[tuple[str, Answer]]]


@pytest.mark.parametrize("way", WAYS)
async def test_a_clean_file_is_ready_and_told_so(here: Site, clamd: Double, way: Way) -> None:
    """Once the request is answered the file is there, scanned whole and once, and its event bears the verdict."""
    content = bytes(range(256)) * 10
    path, answer = await way(here, content)
    assert answer.status in (201, 204), answer
    file_id = await here.file_id(path)
    assert answer.headers["Attachd-File-Id"] == file_id
    assert await here.fetch(file_id) == content
    assert clamd.scanned == [content]
    assert await verdict(here, file_id) is Verdict.CLEAN
    assert [data["verdict"] for data in told(here, "file.ready")] == ["clean"]
    assert (counted(here, "clean"), counted(here, "failed")) == (1, 0)


@pytest.mark.parametrize("way", WAYS)
async def test_an_infected_file_is_refused_and_held(here: Site, way: Way) -> None:
    """The request with the last byte hears why, nobody ever gets the file, and both events tell of it."""
    _, answer = await way(here, INFECTED)
    assert (answer.status, answer.slug) == (403, "infected")
    (failed,), (infected,) = told(here, "upload.failed"), told(here, "file.infected")
    assert failed["reason"] == "infected"
    assert (infected["verdict"], infected["signature"]) == ("infected", SIGNATURE)
    assert told(here, "file.ready") == []
    file_id = infected["file_id"]
    assert await verdict(here, file_id) is Verdict.INFECTED
    link = here.download_link(file_id)
    for method, target, headers in (
        ("GET", link, {}),
        ("HEAD", link, {}),
        ("GET", link, {"Range": "bytes=0-0"}),
        ("GET", link.replace("?", "/manifest?"), {}),
        ("GET", link.replace("?", "/name.bin?"), {}),
    ):
        got = await here.ask(method, target, headers)
        assert got.status == 403
        assert method == "HEAD" or got.slug == "infected"
    assert counted(here, "infected") == 1


async def test_C6_an_infected_upload_stays_refused(here: Site) -> None:
    """C6: HEAD is 410, the status names the reason, the same link is refused with it again."""
    link = here.link()
    path = await here.create(len(INFECTED), link)
    assert (await here.patch(path, 0, INFECTED)).slug == "infected"
    assert (await here.head(path)).status == 410
    gone = await here.ask("GET", path)
    assert (gone.status, gone.json["problem"]) == (410, "infected")
    again = await here.post(len(INFECTED), link)
    assert (again.status, again.slug) == (403, "infected")


async def test_an_infected_file_is_kept_until_its_time_is_over(here: Site) -> None:
    """No sweep takes the bytes for leftovers, nor does fsck; with the file's own time they go."""
    path = await here.create(len(INFECTED), here.link(ttl=3 * HOUR))
    await here.patch(path, 0, INFECTED)
    held = here.leftovers()
    assert len(held) == 1
    assert (here.service.settings.data / held[0]).read_bytes() == INFECTED
    here.clock.skip(2 * HOUR)  # type: ignore[union-attr]
    age(here, DAY)
    assert await here.service.janitor.sweep()
    files = here.service.context.uploads._settling._files
    fsck = Fsck(here.service.metadata, here.service.storage, files, older_than=0)
    assert [finding async for finding in fsck.findings()] == []
    assert here.leftovers() == held
    here.clock.skip(2 * HOUR)  # type: ignore[union-attr]
    assert await here.service.janitor.sweep()
    assert here.leftovers() == []
    assert told(here, "file.deleted")[0]["verdict"] == "infected"


async def test_partials_are_scanned_as_what_they_make(here: Site, clamd: Double) -> None:
    """A virus in two halves is in neither, and is found in the whole."""
    _, answer = await by_joining(here, INFECTED)
    assert answer.slug == "infected"
    assert clamd.scanned == [INFECTED]


async def test_what_is_refused_anyway_is_not_scanned(here: Site, clamd: Double) -> None:
    """Content of a type that the link does not allow costs the scanner nothing."""
    path = await here.create(5, here.link(types=["image/*"]))
    assert (await here.patch(path, 0, b"hello")).slug == "type-refused"
    assert clamd.scanned == []


# --- files that are too large ---------------------------------------------------------------


async def test_a_file_above_the_limit_is_taken_unscanned(tmp_path: Path, clamd: Double) -> None:
    """By default: ready at once, with a verdict that says so, and nothing of it is sent to the scanner."""
    async with scanned(tmp_path, clamd, clamd_max_size="1MiB") as here:
        at_limit, above = await here.upload(bytes(MIB)), await here.upload(bytes(MIB + 1))
        assert [len(content) for content in clamd.scanned] == [MIB]
        assert await verdict(here, at_limit) is Verdict.CLEAN
        assert await verdict(here, above) is Verdict.SKIPPED_SIZE
        assert await here.fetch(above) == bytes(MIB + 1)
        assert counted(here, "skipped_size") == 1


async def test_a_file_above_the_limit_is_refused_before_it_is_sent(tmp_path: Path, clamd: Double) -> None:
    """By setting: discovery tells the limit, and a longer upload cannot be made, nor one of unknown length grow so."""
    async with scanned(tmp_path, clamd, clamd_max_size="1MiB", scan_skipped="refuse") as here:
        assert (await here.ask("OPTIONS", "/files")).headers["Tus-Max-Size"] == str(MIB)
        refused = await here.post(MIB + 1)
        assert (refused.status, refused.slug) == (413, "too-large")
        path = await here.create(None, Upload_Defer_Length="1")
        assert (await here.patch(path, 0, bytes(MIB + 1))).slug == "too-large"
        assert clamd.scanned == []
        assert await here.fetch(await here.upload(bytes(MIB))) == bytes(MIB)


async def test_a_smaller_limit_of_the_scanners_own_counts(tmp_path: Path, clamd: Double, log: io.StringIO) -> None:
    """What clamd itself does not take is above the limit too, and the log names the difference."""
    clamd.most = MIB
    async with scanned(tmp_path / "a", clamd) as here:
        assert await verdict(here, await here.upload(bytes(3 * MIB))) is Verdict.SKIPPED_SIZE
    async with scanned(tmp_path / "b", clamd, scan_skipped="refuse") as here:
        path = await here.create(3 * MIB)
        answer = await here.patch(path, 0, bytes(3 * MIB))
        assert (answer.status, answer.slug) == (413, "too-large")
        assert here.leftovers() == []
    assert len(logged(log, "scan_limit_differs")) == 2


# --- a scanner that fails -------------------------------------------------------------------

FAULTS = ["hangs", "dies", "garbage", "no end", "endless", "error"]


@pytest.mark.parametrize("size", [100, 3 * MIB])
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_file_waits_for_a_scanner_that_fails(here: Site, clamd: Double, fault: Any, size: int) -> None:
    """Closed: 423, nothing to download, the bytes kept; once the scanner works the file comes, and no client asks."""
    short(here)
    clamd.manner = fault
    path, answer = await by_patch(here, bytes(size))
    assert (answer.status, answer.slug) == (423, "locked")
    assert answer.headers["Retry-After"] == "1"
    assert "Upload-Offset" not in answer.headers
    assert (await here.head(path)).status == 423
    assert await state(here, path) is State.FINISHING
    upload = await here.service.metadata.upload(here.upload_id(path))
    assert upload is not None
    assert (await here.ask("GET", here.download_link(upload.file_id))).slug == "not-ready"
    await here.service.tasks.drain()
    assert not await here.service.janitor.sweep()
    assert told(here, "file.ready") == []
    clamd.manner = "honest"
    here.clock.skip(scanning.PAUSE_SECONDS)  # type: ignore[union-attr]
    await here.service.tasks.drain()
    assert await here.service.janitor.sweep()
    assert await here.stored(path) == bytes(size)
    assert await verdict(here, upload.file_id) is Verdict.CLEAN


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_file_is_taken_although_the_scanner_fails(lax: Site, clamd: Double, fault: Any) -> None:
    """Open: ready, with a verdict that nobody takes for clean."""
    short(lax)
    clamd.manner = fault
    path, answer = await by_patch(lax, bytes(3 * MIB))
    assert answer.status == 204
    assert await lax.stored(path) == bytes(3 * MIB)
    assert [data["verdict"] for data in told(lax, "file.ready")] == ["unscanned"]
    assert counted(lax, "failed") == 1


@pytest.mark.parametrize("failure", ["closed", "open"])
async def test_a_scanner_that_is_down(tmp_path: Path, failure: str, log: io.StringIO) -> None:
    """The service starts without it; files wait, or are taken, as the setting says."""
    clamd = Double()
    clamd.address = f"unix:{tmp_path / 'clamd.sock'}"
    async with scanned(tmp_path, clamd, scan_failure=failure) as here:
        path, answer = await by_patch(here, INFECTED)
        assert answer.status == (423 if failure == "closed" else 204)
        assert str(tmp_path / "clamd.sock") in logged(log, "scan_failed")[0]["reason"]
        async with clamd.serving(tmp_path / "clamd.sock"):
            await here.service.tasks.drain()
            assert await here.service.janitor.sweep()
        if failure == "closed":
            assert (await here.ask("GET", path)).json["problem"] == "infected"
        else:
            assert await here.stored(path) == INFECTED


async def test_a_file_that_cannot_be_scanned_does_not_wait_for_ever(here: Site, clamd: Double) -> None:
    """After the time that an upload may lie idle it fails, with its bytes; the link can be used again."""
    clamd.manner = "error"
    link = here.link()
    path = await here.create(5, link)
    assert (await here.patch(path, 0, b"hello")).status == 423
    here.clock.skip(DAY + 1)  # type: ignore[union-attr]
    await here.service.tasks.drain()
    assert await here.service.janitor.sweep()
    gone = await here.ask("GET", path)
    assert (gone.status, gone.json["problem"]) == (410, "scan-failed")
    assert here.leftovers() == []
    use = await here.service.metadata.upload(here.upload_id(path))
    assert use is not None
    found = await here.service.metadata.link_use(use.terms.issuer, use.terms.jti)
    assert found is None or not found.uploads


async def test_a_scanner_that_hangs_is_not_asked_for_every_file(here: Site, clamd: Double) -> None:
    """One scan waits it out; others are put off at once for a while, and so is nobody's request held up."""
    short(here)
    clamd.manner = "hangs"
    await by_patch(here, bytes(10))
    short(here, 3600)
    for _ in range(3):
        _, answer = await by_patch(here, bytes(10))
        assert answer.status == 423
    assert counted(here, "failed") == 1


async def test_storage_that_is_away_is_no_verdict(lax: Site, clamd: Double) -> None:
    """What cannot be read is not scanned, so it is not ready either, whatever the setting says of the scanner."""
    opened, calls = lax.service.storage.open_file, 0

    def away(key: str) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            # the first is for the type
            raise StorageUnavailable("away")
        return opened(key)

    with replaced(lax, "storage", "open_file", away):
        path, answer = await by_patch(lax, bytes(10))
    assert answer.status == 423
    assert await state(lax, path) is State.FINISHING
    assert clamd.scanned == []
    await lax.service.tasks.drain()
    assert await lax.service.janitor.sweep()
    assert await lax.stored(path) == bytes(10)


# --- a scan that takes its time -------------------------------------------------------------


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("way", [by_patch, by_put])
async def test_a_long_scan_goes_on_without_its_request(here: Site, clamd: Double, way: Way) -> None:
    """The request is told that the file is being scanned; HEAD is 423 until it is, and then the upload is whole."""
    clamd.free.clear()
    path, answer = await way(here, b"hello world")
    assert (answer.status, answer.slug) == (423, "locked")
    assert (await here.head(path)).status == 423
    assert (await here.ask("GET", path)).json["state"] == "finishing"
    clamd.free.set()
    assert (await here.ask("GET", f"{path}?wait=10")).json["state"] == "ready"
    found = await here.head(path)
    assert (found.status, found.offset) == (200, 11)
    assert len(clamd.scanned) == 1


@pytest.mark.usefixtures("quick")
async def test_a_repeated_creation_waits_no_longer(here: Site, clamd: Double) -> None:
    """The same link while its file is being scanned is 423, and the finished upload afterwards."""
    clamd.free.clear()
    link = here.link()
    headers = TUS | {"Upload-Length": "5", "Content-Type": OCTETS}
    assert (await here.ask("POST", link, headers, b"hello")).status == 423
    assert (await here.ask("POST", link, headers, b"hello")).status == 423
    clamd.free.set()
    await here.service.tasks.drain()
    again = await here.ask("POST", link, headers, b"hello")
    assert (again.status, again.offset) == (201, 5)
    assert clamd.scanned == [b"hello"]


async def test_a_request_that_waits_for_a_scan_holds_no_place(tmp_path: Path, clamd: Double) -> None:
    """With room for one transfer, another file comes in while the first is being scanned."""
    clamd.free.clear()
    async with scanned(tmp_path, clamd, max_transfers=1) as here:
        first = asyncio.create_task(by_patch(here, b"hello world"))
        await until(lambda: clamd.running == 1)
        path = await here.create(100)
        assert (await here.patch(path, 0, b"some")).status == 204
        clamd.free.set()
        assert (await first)[1].status == 204


async def test_a_client_that_went_gets_its_file(here: Site, clamd: Double) -> None:
    """The last byte is all that a scan needs of a client."""
    clamd.free.clear()
    path = await here.create(5)
    asked = asyncio.create_task(here.patch(path, 0, b"hello"))
    await until(lambda: clamd.running == 1)
    here.lines[-1].reset()
    await asyncio.gather(asked, return_exceptions=True)
    clamd.free.set()
    await here.service.tasks.drain()
    assert await here.stored(path) == b"hello"


@pytest.mark.usefixtures("quick")
async def test_a_termination_waits_for_the_scan(here: Site, clamd: Double) -> None:
    """DELETE is 423 for as long as it takes, which is bounded; then upload and file are gone."""
    clamd.free.clear()
    path = await here.create(5)
    await here.patch(path, 0, b"hello")
    assert (await here.ask("DELETE", path, TUS)).status == 423
    clamd.free.set()
    await here.service.tasks.drain()
    assert (await here.ask("DELETE", path, TUS)).status == 204
    assert here.leftovers() == []


async def test_few_files_are_scanned_at_once(here: Site, clamd: Double) -> None:
    """A crowd of uploads is no crowd at the scanner; each has its turn."""
    clamd.free.clear()
    crowd = [asyncio.create_task(by_patch(here, bytes(100))) for _ in range(3 * scanning.AT_ONCE)]
    await until(lambda: clamd.running == scanning.AT_ONCE)
    await asyncio.sleep(0.1)
    assert clamd.most_running == scanning.AT_ONCE
    clamd.free.set()
    assert {answer.status for _, answer in await asyncio.gather(*crowd)} == {204}
    assert clamd.most_running == scanning.AT_ONCE


@pytest.mark.usefixtures("quick")
async def test_a_turn_that_does_not_come_is_given_up(here: Site, clamd: Double) -> None:
    """Whoever waits too long for others makes way, also where files are taken unscanned, and is come back to."""
    judging = here.service.context.uploads._finisher._scanning
    assert judging is not None
    judging._turn_seconds = 0.1
    clamd.free.clear()
    paths = [(await by_patch(here, bytes(100)))[0] for _ in range(scanning.AT_ONCE + 1)]
    assert [await state(here, path) for path in paths] == [State.FINISHING] * len(paths)
    await until(lambda: not here.service.leases.held_here(here.upload_id(paths[-1])))
    clamd.free.set()
    await here.service.tasks.drain()
    assert await here.service.janitor.sweep()
    assert [await state(here, path) for path in paths] == [State.READY] * len(paths)


async def test_a_stop_does_not_wait_for_a_scan(tmp_path: Path, clamd: Double) -> None:
    """A service that ends in the middle of a scan makes the file at its next start, scanned anew."""
    clamd.free.clear()
    async with scanned(tmp_path, clamd, grace="0s") as here:
        path = await here.create(5)
        asked = asyncio.create_task(here.patch(path, 0, b"hello"))
        await until(lambda: clamd.running == 1)
        await here.service.stop()
    await asyncio.gather(asked, return_exceptions=True)
    clamd.free.set()
    async with scanned(tmp_path, clamd) as here:
        await here.service.janitor.sweep()
        assert await here.stored(path) == b"hello"


# --- no scanner -----------------------------------------------------------------------------


async def test_without_a_scanner_files_are_unscanned(tmp_path: Path) -> None:
    """Nothing says clean where nobody looked."""
    async with site(tmp_path) as here:
        file_id = await here.upload(INFECTED)
        assert await verdict(here, file_id) is Verdict.UNSCANNED
        assert await here.fetch(file_id) == INFECTED
        assert [data["verdict"] for data in told(here, "file.ready")] == ["unscanned"]
