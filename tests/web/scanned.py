"""Services that have their files scanned, and the ways in which a file comes to its end there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from service.model import FileId, Verdict
from tests.scanners.double import EICAR, Double
from tests.web.harness import OCTETS, TUS, Answer, FakeClock, Site, path_of, site
from tests.web.traces import events
from tests.web.under_way import SteppedClock

MIB = 2**20
INFECTED = bytes(1000) + EICAR + bytes(1000)


@asynccontextmanager
async def scanned(folder: Path, clamd: Double, clock: FakeClock | None = None, **changes: Any) -> AsyncIterator[Site]:
    """A service that has its files scanned, on a clock that the test moves."""
    async with site(folder, clock=clock or SteppedClock(), clamd=clamd.address, **changes) as running:
        yield running


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


async def by_patch(here: Site, content: bytes) -> tuple[str, Answer]:
    path = await here.create(len(content))
    await here.patch(path, 0, content[:7])
    return path, await here.patch(path, 7, content[7:])


async def by_post(here: Site, content: bytes) -> tuple[str, Answer]:
    headers = TUS | {"Upload-Length": str(len(content)), "Content-Type": OCTETS}
    answer = await here.ask("POST", here.link(), headers, content)
    return path_of(answer.headers["Location"]) if "Location" in answer.headers else "", answer


async def by_put(here: Site, content: bytes) -> tuple[str, Answer]:
    answer = await here.ask("PUT", here.link(), {}, content)
    return path_of(answer.headers["Location"]) if "Location" in answer.headers else "", answer


async def by_joining(here: Site, content: bytes) -> tuple[str, Answer]:
    partials = []
    for piece in (content[:1040], content[1040:]):
        partials.append(await here.create(len(piece), Upload_Concat="partial"))
        assert (await here.patch(partials[-1], 0, piece)).status == 204
    answer = await here.post(None, Upload_Concat="final;" + " ".join(partials))
    return path_of(answer.headers["Location"]) if "Location" in answer.headers else "", answer


WAYS = [by_patch, by_post, by_put, by_joining]
Way = Callable[[Site, bytes], Awaitable[tuple[str, Answer]]]
