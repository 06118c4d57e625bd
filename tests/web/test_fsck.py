"""The comparison of metadata and storage: what it does about rows that move, and things it cannot look at."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from service.files import ORPHAN_SECONDS, Files
from service.fsck import Finding, Fsck, Word
from service.storage.base import Backing, StorageUnavailable
from tests.web.harness import TUS, Site
from tests.web.sweeps import replaced


def comparison(here: Site) -> Fsck:
    service = here.service
    files: Files = service.janitor._files
    return Fsck(service.metadata, service.metadata, service.storage, files, older_than=ORPHAN_SECONDS)


async def found(fsck: Fsck) -> list[Finding]:
    return [finding async for finding in fsck.findings()]


async def test_a_file_that_is_deleted_meanwhile_is_not_missing(here: Site) -> None:
    """C7: its bytes go after the record says so, so the record is asked again before it is called missing."""
    path = await here.create(5)
    await here.patch(path, 0, b"hello")
    open_file = here.service.storage.open_file

    def deleted(key: str) -> Any:
        class Gone:
            async def __aenter__(self) -> Any:
                assert (await here.ask("DELETE", path, TUS)).status == 204
                self.inner = open_file(key)
                return await self.inner.__aenter__()

            async def __aexit__(self, *error: object) -> Any:
                return None

        return Gone()

    fsck = comparison(here)
    with replaced(here, "storage", "open_file", deleted):
        assert await found(fsck) == []
    assert fsck.files == 1


@pytest.mark.parametrize("moves", [1, 2, 99])
async def test_an_upload_that_moves_on_is_looked_at_again(here: Site, moves: int) -> None:
    """A difference counts only if the row stood still; one that never does is passed over, and counted."""
    path = await here.create(200)
    await here.patch(path, 0, b"hello")
    offsets = iter(range(5, 200))
    left = moves

    async def short(*_: Any, **__: Any) -> Backing:
        nonlocal left
        if left:
            left -= 1
            await here.patch(path, next(offsets), b"x")
        return Backing(0)

    fsck = comparison(here)
    with replaced(here, "storage", "examine", short):
        findings = await found(fsck)
    assert fsck.moving == (moves == 99)
    told = [] if moves == 99 else [(Word.UPLOAD_SHORT, f"offset {5 + moves} is recorded, the first 0 bytes are held")]
    assert [(finding.word, finding.found) for finding in findings] == told


async def test_an_upload_that_ends_meanwhile_is_no_difference(here: Site) -> None:
    """Its bytes may be gone, and nobody needs them."""
    path = await here.create(10)
    await here.patch(path, 0, b"hello")

    async def gone(*_: Any, **__: Any) -> Backing:
        assert (await here.ask("DELETE", path, TUS)).status == 204
        return Backing(0)

    with replaced(here, "storage", "examine", gone):
        assert await found(comparison(here)) == []


async def test_what_cannot_be_looked_at_keeps_nothing_else(here: Site) -> None:
    """A file and an upload that cannot be read have a line each; the others are looked at all the same."""
    for _ in range(3):
        await here.upload(b"hello")
        path = await here.create(10)
        await here.patch(path, 0, b"hello")
    open_file, examine = here.service.storage.open_file, here.service.storage.examine
    refused: list[str] = []

    def one(key: str) -> Any:
        if not refused:
            refused.append(key)
            raise StorageUnavailable("opening a file: permission denied")
        return open_file(key)

    async def other(upload_id: Any, *arguments: Any, **options: Any) -> Backing:
        if len(refused) == 1:
            refused.append(upload_id)
            raise StorageUnavailable("looking: permission denied")
        return await examine(upload_id, *arguments, **options)

    fsck = comparison(here)
    with replaced(here, "storage", "open_file", one), replaced(here, "storage", "examine", other):
        findings = await found(fsck)
    assert [finding.word for finding in findings] == [Word.UNCHECKED, Word.UNCHECKED]
    assert findings[1].id == refused[1]
    assert (fsck.files, fsck.uploads) == (3, 3)


async def test_a_storage_that_is_away_is_not_asked_for_everything(here: Site) -> None:
    """After more than twenty things that cannot be looked at it ends with the reason."""
    for _ in range(40):
        await here.upload(b"")
    asked: list[str] = []

    def away(key: str) -> Any:
        asked.append(key)
        raise StorageUnavailable("away")

    with replaced(here, "storage", "open_file", away), pytest.raises(StorageUnavailable, match="away"):
        await found(comparison(here))
    assert len(asked) == 32


async def test_pages_and_batches_miss_nothing(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the pages are, every row is looked at once."""
    monkeypatch.setattr("service.fsck._BATCH", 2)
    monkeypatch.setattr("service.fsck._AT_ONCE", 3)
    for _ in range(5):
        await here.upload(b"hello")
        await here.patch(await here.create(10), 0, b"hello")
    fsck = comparison(here)
    assert await found(fsck) == []
    assert (fsck.files, fsck.uploads) == (5, 5)
    for path in (here.service.settings.data / "files").rglob("u_*"):
        path.unlink()
    assert [finding.word for finding in await found(comparison(here))] == [Word.FILE_MISSING] * 5


async def test_an_owner_that_is_miscounted_is_told_and_counted_anew(here: Site) -> None:
    """A7: Counters that are off, as only a hand at the database makes them, are found and mended."""
    await here.upload(b"hello", owner="u1")
    assert await found(comparison(here)) == []
    with closing(sqlite3.connect(here.service.settings.data / "attachd.db")) as database:
        database.execute("UPDATE owners SET file_bytes = 7, pending = 1")
        database.commit()
    (finding,) = await found(comparison(here))
    assert (finding.word, finding.id) == (Word.MISCOUNTED, "u1")
    assert "1 files of 7 bytes and 1 unfinished uploads" in finding.found
    assert await here.service.metadata.recount() == 1
    assert await found(comparison(here)) == []
