"""Reading stored bytes again: files that go meanwhile, storage that goes away, and what an event tells."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.events import EventMaker
from service.storage.base import StorageShort, StorageUnavailable
from service.verifying import Pace, Verifier
from tests.web.harness import TUS, Site, site
from tests.web.sweeps import logged, replaced
from tests.web.traces import events

BLOCK = 64 * 2**10


def verifier(here: Site) -> Verifier:
    service = here.service
    clock = service.context.clock
    return Verifier(service.metadata, service.storage, clock, EventMaker(lambda: "evt_x"), Pace(None, clock))


async def file_at(here: Site, content: bytes) -> tuple[str, Any]:
    """The path of an upload, and the id of the file it made."""
    path = await here.create(len(content))
    await here.patch(path, 0, content)
    return path, await here.file_id(path)


@pytest.mark.parametrize("at", ["opening", "reading"])
async def test_a_file_that_is_deleted_meanwhile_is_passed_over(here: Site, at: str) -> None:
    """Its bytes go after the record says so: nothing is told of it, and no event comes after `file.deleted`."""
    path, file_id = await file_at(here, b"hello")
    open_file = here.service.storage.open_file

    @asynccontextmanager
    async def gone(key: str) -> AsyncIterator[Any]:
        class Half:
            size = 5

            async def read(self, start: int, end: int) -> AsyncIterator[bytes]:
                yield b"he"
                await delete()
                raise StorageShort("the file is shorter than it was")

        if at == "reading":
            yield Half()
            return
        await delete()
        async with open_file(key) as opened:
            yield opened

    async def delete() -> None:
        assert (await here.ask("DELETE", path, TUS)).status == 204

    with replaced(here, "storage", "open_file", gone):
        assert await verifier(here).one(file_id) is None
    assert [kind for kind, _ in events(here) if kind == "file.corrupt"] == []


async def test_o7_damage_is_told_in_the_outbox_and_the_log(here: Site, log: io.StringIO) -> None:
    """O7: the event says what the others of a file do, and which bytes; the log names the file at level error."""
    file_id = await here.upload(b"hello", meta={"chat": 7}, owner="u42")
    (path,) = (path for path in (here.service.settings.data / "files").rglob("u_*"))
    path.write_bytes(b"hellO")
    verdict = await verifier(here).one(file_id)  # type: ignore[arg-type]
    assert verdict is not None
    assert [(each.start, each.end) for each in verdict.damage] == [(0, 5)]
    (ready,) = (event for kind, event in events(here) if kind == "file.ready")
    (told,) = (event for kind, event in events(here) if kind == "file.corrupt")
    assert told == ready | {"ranges": [[0, 5]], "damaged_bytes": 5}
    (record,) = logged(log, "file_corrupt")
    assert (record["level"], record["file_id"], record["damaged_bytes"]) == ("error", file_id, 5)


async def test_an_event_does_not_grow_with_the_damage(tmp_path: Any) -> None:
    """It names a hundred ranges; how many bytes are damaged is told whole, and so is each range to the caller."""
    async with site(tmp_path, block_size="64KiB") as here:
        file_id = await here.upload(bytes(300 * BLOCK))
        (path,) = (path for path in (here.service.settings.data / "files").rglob("u_*"))
        with path.open("r+b") as file:
            for number in range(0, 300, 2):
                file.seek(number * BLOCK)
                file.write(b"\x01")
        verdict = await verifier(here).one(file_id)  # type: ignore[arg-type]
        assert verdict is not None
        assert len(verdict.damage) == 150
        (told,) = (event for kind, event in events(here) if kind == "file.corrupt")
        assert (len(told["ranges"]), told["damaged_bytes"]) == (100, 150 * BLOCK)


async def test_a_storage_that_is_away_is_not_asked_for_everything(here: Site) -> None:
    """After more than twenty files that cannot be read it ends with the reason."""
    for _ in range(25):
        await here.upload(b"")
    asked: list[str] = []

    def away(key: str) -> Any:
        asked.append(key)
        raise StorageUnavailable("away")

    with replaced(here, "storage", "open_file", away), pytest.raises(StorageUnavailable, match="away"):
        assert {verdict.unread async for verdict in verifier(here).all()} == {"away"}
    assert len(asked) == 21


async def test_pages_miss_nothing(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the pages are, every file that is not deleted is read once."""
    monkeypatch.setattr("service.verifying._BATCH", 2)
    ids = [(await file_at(here, b"hello")) for _ in range(5)]
    assert (await here.ask("DELETE", ids[0][0], TUS)).status == 204
    seen = [verdict.file.id async for verdict in verifier(here).all()]
    assert sorted(seen) == sorted(file_id for _, file_id in ids[1:])
