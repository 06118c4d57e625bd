"""Scanning by real processes: clamd itself, and what a service leaves that ends in the middle of a scan."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import require
from tests.e2e.lines import append, ask, create, download, until
from tests.e2e.process import ServiceProcess
from tests.e2e.test_operating import run
from tests.scanners.double import EICAR, SIGNATURE, Double, real_clamd

MIB = 2**20
INFECTED = bytes(1000) + EICAR + bytes(1000)


def recorded(service: ServiceProcess) -> list[tuple[str, str]]:
    """The events that tell how files ended, oldest first, with their data."""
    with closing(sqlite3.connect(service.data / "attachd.db")) as database:
        rows = database.execute("SELECT type, data FROM events ORDER BY seq").fetchall()
    return [(kind, data) for kind, data in rows if kind in ("file.ready", "file.infected", "upload.failed")]


# --- clamd ----------------------------------------------------------------------------------


@pytest.fixture
def clamd(tmp_path: Path) -> Iterator[Path]:
    """clamd, which takes 2 MiB; else the test is skipped."""
    require("clamd")
    with real_clamd(tmp_path, most="2M") as socket:
        yield socket


@pytest.fixture
def service(tmp_path: Path, clamd: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path / "service", ATTACHD_CLAMD=f"unix:{clamd}", ATTACHD_CLAMD_MAX_SIZE="4MiB") as running:
        yield running


@pytest.mark.parametrize("content", [b"", b"hello", bytes(2 * MIB), bytes(2 * MIB + 1), bytes(4 * MIB + 1)])
def test_clamd_lets_clean_files_pass(service: ServiceProcess, content: bytes) -> None:
    """Up to its own limit, and above it and ours, where they are taken unscanned."""
    upload = create(service, len(content))
    if content:
        assert append(service, upload, 0, content).status == 204
    until(lambda: service.status(upload)["state"] == "ready", "the file is ready")
    assert download(service, upload) == content
    verdict = "clean" if len(content) <= 2 * MIB else "skipped_size"
    assert f'"verdict":"{verdict}"' in recorded(service)[0][1]


@pytest.mark.parametrize("content", [EICAR, INFECTED, bytes(MIB) + EICAR], ids=["alone", "inside", "at the end"])
def test_clamd_finds_the_test_virus(service: ServiceProcess, content: bytes) -> None:
    """Wherever in the file it is: the upload is refused, the events have clamd's name for it, nobody gets the file."""
    upload = create(service, len(content))
    refused = append(service, upload, 0, content)
    assert (refused.status, refused.slug) == (403, "infected")
    (_, failed), (kind, infected) = recorded(service)
    assert '"reason":"infected"' in failed
    assert kind == "file.infected"
    assert SIGNATURE in infected
    file_id = infected.partition('"file_id":"')[2][:28]
    assert ask(service, "GET", service.mint_download(file_id)).slug == "infected"
    assert service.metrics()['attachd_scans_total{verdict="infected"}'] == 1


def test_the_doctor_knows_clamd(service: ServiceProcess) -> None:
    """A limit of clamd's below ours is found before a file is."""
    assert "ok" in run(service, "doctor", ATTACHD_CLAMD_MAX_SIZE="2MiB").stdout.partition("clamd ")[2].split()[0]
    failed = run(service, "doctor")
    assert failed.returncode == 1
    assert "StreamMaxLength" in failed.stdout


# --- the end of a service in the middle of a scan --------------------------------------------------------


@pytest.fixture
async def double() -> AsyncIterator[Double]:
    """A scanner that answers nothing until it is told to."""
    async with Double().serving() as serving:
        serving.free.clear()
        yield serving


async def begun(double: Double) -> None:
    """A scan is under way."""
    async with asyncio.timeout(30):
        while not double.running:
            await asyncio.sleep(0.01)


async def ended(double: Double) -> None:
    """No scan is: whoever asked is gone."""
    double.free.set()
    async with asyncio.timeout(30):
        while double.running:
            await asyncio.sleep(0.01)


async def ended_in_a_scan(service: ServiceProcess, double: Double, content: bytes, end: Callable[[], object]) -> str:
    """The upload whose last byte came, and whose scan the service did not live to see the end of."""
    upload = await asyncio.to_thread(create, service, len(content))
    asked = asyncio.create_task(asyncio.to_thread(append, service, upload, 0, content))
    await begun(double)
    await asyncio.to_thread(end)
    with contextlib.suppress(OSError):
        assert (await asked).status in (423, 503)
    await ended(double)
    double.scanned.clear()
    return upload


@pytest.mark.blocking  # a service is started and ended while no scan is under way
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("content", [b"hello world", INFECTED], ids=["clean", "infected"])
async def test_C1_a_scan_that_was_killed_is_made_again(
    tmp_path: Path, double: Double, content: bytes, workers: str
) -> None:
    """C1: with no client asking, the next start scans the file anew, makes it what it is, and tells so once."""
    with ServiceProcess(tmp_path, ATTACHD_CLAMD=double.address, ATTACHD_WORKERS=workers) as service:
        upload = await ended_in_a_scan(service, double, content, service.kill)
        assert recorded(service) == []
        await asyncio.to_thread(service.start)
        deadline = time.monotonic() + 30
        while not recorded(service):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        kinds = [kind for kind, _ in recorded(service)]
        if content == INFECTED:
            assert kinds == ["upload.failed", "file.infected"]
        else:
            assert kinds == ["file.ready"]
            assert await asyncio.to_thread(download, service, upload) == content
        assert double.scanned == [content]


@pytest.mark.blocking  # as above
async def test_gc_makes_no_file_unscanned(tmp_path: Path, double: Double) -> None:
    """The command that finishes what a stop interrupted asks the scanner as the service does."""
    with ServiceProcess(tmp_path, ATTACHD_CLAMD=double.address, ATTACHD_GRACE="0s") as service:
        await ended_in_a_scan(service, double, INFECTED, service.terminate)
        swept = await asyncio.to_thread(run, service, "gc")
        assert swept.returncode == 0, swept.stderr
        assert [kind for kind, _ in recorded(service)] == ["upload.failed", "file.infected"]
        assert double.scanned == [INFECTED]


@pytest.mark.blocking  # as above
async def test_gc_leaves_what_it_cannot_have_scanned(tmp_path: Path, double: Double) -> None:
    """With the scanner down the upload stays as it is, and the command says that not all was done."""
    with ServiceProcess(tmp_path, ATTACHD_CLAMD=double.address, ATTACHD_GRACE="0s") as service:
        await ended_in_a_scan(service, double, b"hello", service.terminate)
        swept = await asyncio.to_thread(run, service, "gc", ATTACHD_CLAMD=f"unix:{tmp_path}/none")
        assert swept.returncode == 1
        assert recorded(service) == []
