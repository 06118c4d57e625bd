"""Bytes that no record needs are found and removed, and no others are."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from service.model import State
from service.storage.base import Held, StorageFull
from tests.web.harness import TUS, Site, site
from tests.web.sweeps import (
    DAY,
    HOUR,
    age,
    broken,
    finishing_with_a_file,
    logged,
    reclaimed,
    replaced,
    skip,
    state,
    succeeded,
    unfinishable,
)
from tests.web.traces import forward
from tests.web.under_way import SteppedClock, until


async def terminated_unfinished(here: Site) -> None:
    path = await here.create(10)
    await here.patch(path, 0, b"hello")
    with broken(here, "storage", "discard", StorageFull("away")):
        assert (await here.ask("DELETE", path, TUS)).status == 204


async def terminated_finishing(here: Site) -> None:
    path = await finishing_with_a_file(here)
    with broken(here, "storage", "discard", StorageFull("away")):
        assert (await here.ask("DELETE", path, TUS)).status == 204


async def terminated_ready(here: Site) -> None:
    path = await here.create(5)
    await here.patch(path, 0, b"hello")
    with broken(here, "storage", "discard", StorageFull("away")):
        assert (await here.ask("DELETE", path, TUS)).status == 204


async def expired_upload(here: Site) -> None:
    path = await here.create(10)
    await here.patch(path, 0, b"hello")
    skip(here, HOUR + 1)
    with broken(here, "storage", "discard", StorageFull("away")):
        await here.service.janitor.sweep()


async def expired_partial(here: Site) -> None:
    path = await here.create(5, Upload_Concat="partial")
    await here.patch(path, 0, b"hello")
    skip(here, HOUR + 1)
    with broken(here, "storage", "discard", StorageFull("away")):
        await here.service.janitor.sweep()


async def expired_file(here: Site) -> None:
    await here.upload(b"hello", ttl=60)
    await here.service.tasks.drain()
    skip(here, 61)
    with broken(here, "storage", "delete", StorageFull("away")):
        await here.service.janitor.sweep()


async def refused_completion(here: Site) -> None:
    path = await here.create(5, here.link(sha256="0" * 64))
    away = StorageFull("away")
    with broken(here, "storage", "discard", away), broken(here, "storage", "delete", away):
        assert (await here.patch(path, 0, b"hello")).status >= 400


async def segment_of_a_finished_file(here: Site) -> None:
    """What a crash leaves between the file's name and the removal of what it was made of."""
    path = await here.create(5)
    await here.patch(path, 0, b"hello")
    upload_id = here.upload_id(path)
    (here.service.settings.data / "uploads" / upload_id[2:4] / f"{upload_id}.e1").write_bytes(b"hello")


ORPHANS = (
    terminated_unfinished,
    terminated_finishing,
    terminated_ready,
    expired_upload,
    expired_partial,
    expired_file,
    refused_completion,
)


@pytest.mark.parametrize("make", [*ORPHANS, segment_of_a_finished_file])
async def test_bytes_that_nobody_needs_go(
    swept: Site, log: io.StringIO, make: Callable[[Site], Awaitable[None]]
) -> None:
    """What was left when storage failed is removed an hour later."""
    await make(swept)
    known = [name for name in swept.leftovers() if make is segment_of_a_finished_file and name.startswith("files/")]
    before = reclaimed(swept)
    assert len(swept.leftovers()) == len(known) + 1
    skip(swept, HOUR)
    age(swept)
    await swept.service.janitor.sweep()
    assert swept.leftovers() == known
    assert reclaimed(swept) - before == 5
    (record,) = logged(log, "orphan_removed")
    assert (record["level"], record["size"]) == ("info", 5)


async def forget(here: Site) -> None:
    """The tombstones go."""
    forward(here, 3 * HOUR)
    await here.service.janitor.sweep()
    assert await here.service.metadata.uploads([here.upload_id(here.leftovers()[-1][:36])]) == {}


@pytest.mark.parametrize("make", [terminated_unfinished, expired_upload, expired_partial])
async def test_unfinished_bytes_go_when_their_upload_is_forgotten(
    swept: Site, make: Callable[[Site], Awaitable[None]]
) -> None:
    """A few unfinished things that nobody knows any more are removed."""
    await make(swept)
    await forget(swept)
    skip(swept, HOUR)
    age(swept)
    await swept.service.janitor.sweep()
    assert swept.leftovers() == []


@pytest.mark.parametrize("make", [terminated_finishing, terminated_ready, expired_file, refused_completion])
async def test_finished_bytes_that_nobody_knows_stay(
    swept: Site, log: io.StringIO, make: Callable[[Site], Awaitable[None]]
) -> None:
    """A finished file without any record may be another database's, or newer than this one: it is told, and stays."""
    await make(swept)
    await forget(swept)
    before = swept.leftovers()
    skip(swept, HOUR)
    age(swept)
    await swept.service.janitor.sweep()
    assert swept.leftovers() == before != []
    (record,) = logged(log, "strangers_kept")
    assert (record["level"], record["finished"], record["unfinished"]) == ("warning", 1, 0)


async def test_a_deleted_file_goes_when_only_its_upload_is_forgotten(swept: Site) -> None:
    """A file that outlived its upload's row and then could not be removed is known by its own, and goes."""
    await swept.upload(b"hello", ttl=4 * HOUR)
    await swept.service.tasks.drain()
    await forget(swept)
    skip(swept, HOUR + 1)
    with broken(swept, "storage", "delete", StorageFull("away")):
        await swept.service.janitor.sweep()
    assert len(swept.leftovers()) == 1
    skip(swept, HOUR)
    age(swept)
    await swept.service.janitor.sweep()
    assert swept.leftovers() == []


@pytest.mark.parametrize("make", ORPHANS)
async def test_young_bytes_stay(swept: Site, make: Callable[[Site], Awaitable[None]]) -> None:
    """What was changed within the last hour is not taken for an orphan: somebody may be at it."""
    await make(swept)
    age(swept, 3000)
    skip(swept, HOUR)
    await swept.service.janitor.sweep()
    assert len(swept.leftovers()) == 1


async def test_bytes_that_somebody_needs_stay(swept: Site) -> None:
    """However old: unfinished uploads, partials, what is being finished, with or without its file, and files."""
    part = await swept.create(5, Upload_Concat="partial")
    await swept.patch(part, 0, b"hello")
    half = await swept.create(10)
    await swept.patch(half, 0, b"hello")
    stuck = [await unfinishable(swept), await finishing_with_a_file(swept)]
    file = await swept.upload(b"content")
    await swept.service.tasks.drain()
    before = swept.leftovers()
    age(swept, 100 * DAY)
    swept.service.janitor._orphans_due = 0
    with broken(swept, "metadata", "publish"):
        await swept.service.janitor.sweep()
    assert [await state(swept, path) for path in stuck] == [State.FINISHING] * 2
    assert swept.leftovers() == before
    assert await swept.fetch(file) == b"content"


async def test_a_file_stays_when_its_upload_is_forgotten(swept: Site) -> None:
    """A file has no end of its own, and needs no upload's row to stay."""
    files = [await swept.upload(b"content %d" % number) for number in range(3)]
    await swept.service.tasks.drain()
    forward(swept, 3 * HOUR)
    await swept.service.janitor.sweep()
    age(swept, 100 * DAY)
    skip(swept, HOUR)
    await swept.service.janitor.sweep()
    assert [await swept.fetch(file) for file in files] == [b"content 0", b"content 1", b"content 2"]


async def test_orphans_are_looked_for_at_the_start_and_then_hourly(tmp_path: Path) -> None:
    """A start removes them, later sweeps do so once an hour."""
    clock = SteppedClock()
    async with site(tmp_path, clock=clock) as here:
        await terminated_unfinished(here)
        age(here)
    async with site(tmp_path, clock=clock) as here:
        await until(lambda: here.leftovers() == [])
        await until(lambda: succeeded(here) > 0)
        await terminated_unfinished(here)
        age(here)
        clock.skip(HOUR - 60)
        await here.service.janitor.sweep()
        assert len(here.leftovers()) == 1
        clock.skip(61)
        await here.service.janitor.sweep()
        assert here.leftovers() == []


async def test_one_orphan_that_stays_keeps_no_other(swept: Site, log: io.StringIO) -> None:
    """One that cannot be removed is logged by its upload's id, and is no success; the others go."""
    for _ in range(3):
        await terminated_unfinished(swept)
    age(swept)
    skip(swept, HOUR)
    before, discard = succeeded(swept), swept.service.storage.discard
    kept: list[str] = []

    async def first_fails(upload_id: Any, **options: Any) -> None:
        if not kept:
            kept.append(upload_id)
            raise StorageFull("away")
        await discard(upload_id, **options)

    with replaced(swept, "storage", "discard", first_fails):
        await swept.service.janitor.sweep()
    assert len(swept.leftovers()) == 1
    assert [record["upload_id"] for record in logged(log, "sweep_step_failed")] == kept
    assert succeeded(swept) == before


@pytest.mark.parametrize(("count", "left"), [(20, 0), (21, 21)])
async def test_a_store_of_another_database_is_left_alone(swept: Site, log: io.StringIO, count: int, left: int) -> None:
    """Where most of what is held was never heard of, the database is the wrong one: nothing goes, loudly."""
    for number in range(count):
        name = f"u_{'abcdefghijklmnopqrstuvwxyz'[number] * 26}"
        path = swept.service.settings.data / "uploads" / name[2:4] / f"{name}.e1"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"precious")
    age(swept)
    skip(swept, HOUR)
    await swept.service.janitor.sweep()
    assert len(swept.leftovers()) == left
    assert [record["level"] for record in logged(log, "strangers_kept")] == ["error"] * bool(left)


def multipart_orphans(here: Site) -> float:
    return here.service.metrics.registry.get_sample_value("attachd_multipart_orphans") or 0.0


async def test_the_gauge_shows_unfinished_uploads_that_are_left(swept: Site) -> None:
    """Unfinished bytes that no record needs count while they cannot be removed, and no longer once they are."""
    for _ in range(3):
        await terminated_unfinished(swept)
    await terminated_ready(swept)
    age(swept)
    skip(swept, HOUR)
    away = StorageFull("away")
    with broken(swept, "storage", "discard", away), broken(swept, "storage", "delete", away):
        await swept.service.janitor.sweep()
    assert multipart_orphans(swept) == 3
    skip(swept, HOUR)
    await swept.service.janitor.sweep()
    assert (multipart_orphans(swept), swept.leftovers()) == (0, [])


async def test_the_gauge_shows_unfinished_uploads_of_another_database(swept: Site) -> None:
    """What is kept because it may be another's counts too."""
    for number in range(21):
        name = f"u_{'abcdefghijklmnopqrstuvwxyz'[number] * 26}"
        path = swept.service.settings.data / "uploads" / name[2:4] / f"{name}.e1"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"precious")
    age(swept)
    skip(swept, HOUR)
    await swept.service.janitor.sweep()
    assert (multipart_orphans(swept), len(swept.leftovers())) == (21, 21)


async def test_what_is_held_under_a_partial_stays_while_it_lives(swept: Site) -> None:
    """A ready partial keeps finished objects too, which its ledger may name; they go when it expires."""
    path = await swept.create(5, Upload_Concat="partial")
    await swept.patch(path, 0, b"hello")
    upload_id = swept.upload_id(path)
    finished = swept.service.settings.data / "files" / upload_id[2:4] / upload_id
    finished.parent.mkdir(exist_ok=True)
    finished.write_bytes(b"hello")
    before = swept.leftovers()
    age(swept)
    swept.service.janitor._orphans_due = 0
    await swept.service.janitor.sweep()
    assert (swept.leftovers(), len(before)) == (before, 2)
    skip(swept, HOUR + 1)
    await swept.service.janitor.sweep()
    assert swept.leftovers() == []


async def test_storage_may_know_uploads_by_the_beginning_of_their_ids(swept: Site) -> None:
    """Where a name is the first 15 characters, what is needed stays and what is not goes all the same."""
    receiving = await swept.create(10)
    await swept.patch(receiving, 0, b"hello")
    path = await swept.create(10)
    await swept.patch(path, 0, b"hello")
    assert (await swept.ask("DELETE", path, TUS)).status == 204
    names = [swept.upload_id(each)[:15] for each in (receiving, path)]
    removed: list[str] = []

    async def held(**_: Any) -> AsyncIterator[Held]:
        for name in names:
            yield Held(name, None, 5)

    async def discard(name: str) -> None:
        removed.append(name)

    skip(swept, HOUR / 2)
    swept.service.janitor._orphans_due = 0
    with replaced(swept, "storage", "held", held), replaced(swept, "storage", "discard", discard):
        await swept.service.janitor.sweep()
    assert removed == names[1:]


async def test_terminating_what_is_being_finished_leaves_nothing(swept: Site) -> None:
    """A DELETE after the file was made and before it was recorded removes the file at once."""
    path = await finishing_with_a_file(swept)
    assert (await swept.ask("DELETE", path, TUS)).status == 204
    assert swept.leftovers() == []


async def test_a_refused_file_leaves_nothing(swept: Site) -> None:
    """A file that its link refuses goes with the upload that failed, in one call that needs no key."""
    path = await swept.create(5, swept.link(sha256="0" * 64))
    with broken(swept, "storage", "delete", StorageFull("away")):
        assert (await swept.patch(path, 0, b"hello")).status >= 400
    assert await state(swept, path) is State.FAILED
    assert swept.leftovers() == []
