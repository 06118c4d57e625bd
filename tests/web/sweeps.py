"""Uploads in the states that a sweep finds them in, calls that fail, and what a sweep leaves to be seen."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

from service.metadata.base import MetadataUnavailable
from service.model import State
from tests.contract import disk
from tests.web.harness import Site, path_of
from tests.web.traces import breaks
from tests.web.under_way import SteppedClock

HOUR = 3600
DAY = 24 * HOUR


def succeeded(here: Site) -> float:
    """When a sweep last ended well."""
    return here.service.metrics.registry.get_sample_value("attachd_gc_last_success_timestamp_seconds") or 0.0


def reclaimed(here: Site) -> float:
    return here.service.metrics.registry.get_sample_value("attachd_gc_reclaimed_bytes_total") or 0.0


def logged(log: io.StringIO, event: str) -> list[dict[str, Any]]:
    """The records of one event so far."""
    records = [json.loads(line) for line in log.getvalue().splitlines()]
    return [record for record in records if record["event"] == event]


async def state(here: Site, path: str) -> State | None:
    """What is recorded of the upload."""
    upload = await here.service.metadata.upload(here.upload_id(path))
    return upload.state if upload else None


async def finishing(here: Site, *, length: int = 5) -> str:
    """An upload whose last byte is in, and whose file storage could not make then."""
    path = await here.create(length)
    with broken(here, "storage", "complete"):
        assert (await here.patch(path, 0, b"x" * length)).status == 503
    assert await state(here, path) is State.FINISHING
    return path


async def unfinishable(here: Site) -> str:
    """An upload whose file cannot be made: something else lies where it belongs."""
    path = await here.create(5)
    shard(here, path).write_bytes(b"stray")
    assert (await here.patch(path, 0, b"stuck")).status == 503
    return path


def shard(here: Site, path: str) -> Path:
    return here.service.settings.data / "files" / here.upload_id(path)[2:4]


async def final(here: Site, *partials: str) -> str:
    """A final upload of the partials."""
    answer = await here.post(None, here.link(), Upload_Concat="final;" + " ".join(partials))
    assert answer.status == 201, answer
    return path_of(answer.headers["Location"])


async def overlooked_final(here: Site) -> str:
    """A final upload that could be joined, if whoever completed its last partial had come to it."""
    part = await here.create(5, Upload_Concat="partial")
    path = await final(here, part)

    async def none(_: Any) -> tuple[()]:
        return ()

    with replaced(here, "metadata", "pending_finals", none):
        assert (await here.patch(part, 0, b"hello")).status == 204
        await here.service.tasks.drain()
    assert await state(here, path) is State.RECEIVING
    return path


@contextlib.contextmanager
def replaced(here: Site, part: str, name: str, stand_in: Any) -> Any:
    """A call of the service's storage or metadata is another inside."""
    where = getattr(here.service, part)
    setattr(where, name, stand_in)
    try:
        yield
    finally:
        delattr(where, name)


def broken(here: Site, part: str, name: str, error: Exception | None = None) -> Any:
    """A call of the service's storage or metadata fails inside."""
    return replaced(here, part, name, breaks(error or MetadataUnavailable("away")))


def age(here: Site, seconds: float = 2 * HOUR) -> None:
    """All that storage holds was last changed so much earlier."""
    for folder in ("uploads", "files"):
        disk.age(here.service.settings.data / folder, seconds)


def skip(here: Site, seconds: float) -> None:
    """So much time passes."""
    assert isinstance(here.clock, SteppedClock)
    here.clock.skip(seconds)


async def finishing_with_a_file(here: Site) -> str:
    """An upload whose file is made and not recorded."""
    path = await here.create(5)
    with broken(here, "metadata", "publish"):
        assert (await here.patch(path, 0, b"hello")).status == 503
    assert any(name.startswith("files/") for name in here.leftovers())
    return path
