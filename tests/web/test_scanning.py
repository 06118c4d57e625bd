"""Files are looked through for viruses before they are ready: what clients, operators and consumers see of it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service import scanning, uploads
from service.fsck import Fsck
from service.leases import PATIENCE_SECONDS
from service.model import State, UploadId, Verdict
from tests.scanners.double import SIGNATURE, Double
from tests.web.harness import OCTETS, TUS, Site, path_of, site
from tests.web.scanned import (
    INFECTED,
    MIB,
    WAYS,
    Way,
    by_joining,
    by_patch,
    by_put,
    counted,
    scanned,
    told,
    verdict,
)
from tests.web.sweeps import DAY, HOUR, age, logged, replaced, state
from tests.web.under_way import until


@pytest.fixture
async def here(tmp_path: Path, clamd: Double) -> AsyncIterator[Site]:
    """A service with that scanner, which waits for it where it fails."""
    async with scanned(tmp_path, clamd) as running:
        yield running


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request waits but a moment for a scan."""
    monkeypatch.setattr(uploads, "SCAN_PATIENCE_SECONDS", 0.1)


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
    fsck = Fsck(here.service.metadata, here.service.metadata, here.service.storage, files, older_than=0)
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


@pytest.mark.usefixtures("quick")
async def test_an_empty_upload_has_its_address_while_it_is_scanned(here: Site, clamd: Double) -> None:
    """Its creation is its end; the answer that it is being scanned says where to ask for it."""
    clamd.free.clear()
    answer = await here.post(0)
    assert (answer.status, answer.slug) == (423, "locked")
    clamd.free.set()
    await here.service.tasks.drain()
    assert await here.stored(path_of(answer.headers["Location"])) == b""


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
async def test_a_termination_waits_for_the_scan(here: Site, clamd: Double, monkeypatch: pytest.MonkeyPatch) -> None:
    """DELETE is 423 for as long as it takes, which is bounded; then upload and file are gone."""
    clamd.free.clear()
    path = await here.create(5)
    await here.patch(path, 0, b"hello")
    with monkeypatch.context() as shorter:
        shorter.setattr(here.service.leases, "_patience_seconds", PATIENCE_SECONDS)
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


@pytest.mark.parametrize(("scans", "leases"), [(False, 1), (True, 2)])
async def test_a_scan_costs_nothing_where_there_is_none(
    tmp_path: Path, clamd: Double, scans: bool, leases: int
) -> None:
    """Without a scanner the request that brings the last byte makes the file, under the one lease that it has."""
    changes: dict[str, Any] = {"clamd": clamd.address} if scans else {}
    async with site(tmp_path, **changes) as here:
        path = await here.create(5)
        taken = []

        async def take(upload_id: UploadId, *arguments: Any, **options: Any) -> Any:
            taken.append(upload_id)
            return await acquire(upload_id, *arguments, **options)

        acquire = here.service.metadata.acquire_lease
        with replaced(here, "metadata", "acquire_lease", take):
            assert (await here.patch(path, 0, b"hello")).status == 204
        assert taken == [here.upload_id(path)] * leases
