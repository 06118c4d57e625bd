"""A scanner that is away, hangs or makes no sense: no file passes for clean, and none waits for ever."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service import scanning, uploads
from service.model import State, Verdict
from service.storage.base import StorageUnavailable
from tests.scanners.double import Double
from tests.web.harness import OCTETS, TUS, Site
from tests.web.scanned import (
    INFECTED,
    MIB,
    by_patch,
    counted,
    scanned,
    short,
    told,
    verdict,
)
from tests.web.sweeps import DAY, logged, replaced, state


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


async def test_a_repeated_creation_does_not_wait_for_a_slow_scanner(
    here: Site, clamd: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scan that it brings about goes on by itself; the same link gives the finished upload afterwards."""
    monkeypatch.setattr(uploads, "SCAN_PATIENCE_SECONDS", 0.1)
    link = here.link()
    headers = TUS | {"Upload-Length": "5", "Content-Type": OCTETS}
    clamd.manner = "error"
    assert (await here.ask("POST", link, headers, b"hello")).status == 423
    clamd.manner = "honest"
    clamd.free.clear()
    async with asyncio.timeout(30):
        refused = await here.ask("POST", link, headers, b"hello")
    assert (refused.status, refused.slug) == (423, "locked")
    clamd.free.set()
    await here.service.tasks.drain()
    assert (await here.ask("POST", link, headers, b"hello")).status == 201
    assert clamd.scanned == [b"hello"]


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
