"""A place in a bucket belongs to one database: another one, or one in the wrong place, harms nothing."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from service.starting import CannotStart
from tests.contract.buckets import some_bytes
from tests.stores.faults import status
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store
from tests.web.harness import TUS
from tests.web.s3_site import MIB, PREFIX, S3Site, s3_site
from tests.web.sweeps import HOUR, logged

CONTENT = some_bytes(12 * MIB)
MARK = f"{PREFIX}attachd-owner"

Start = Callable[..., AbstractAsyncContextManager[S3Site]]


@pytest.fixture
def start(tmp_path: Path, store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A service on the bucket, with the database of that name."""

    def begin(database: str = "one", **changes: Any) -> AbstractAsyncContextManager[S3Site]:
        return s3_site(tmp_path / database, store, bucket, faulty, monkeypatch, **changes)

    return begin


async def refused(start: Start, database: str = "one", **changes: Any) -> str:
    """What a start says that is refused."""
    with pytest.raises(CannotStart) as caught:
        async with start(database, **changes):
            pass
    return str(caught.value)


async def half(s3: S3Site) -> str:
    """An upload with its first seven of twelve MiB."""
    path = await s3.here.create(len(CONTENT))
    assert (await s3.patch(path, 0, CONTENT[: 7 * MIB])).status == 204
    return path


def mark(store: Store, bucket: str) -> bytes:
    """What the place is marked with."""
    return store.client().get_object(Bucket=bucket, Key=MARK)["Body"].read()


def everything(store: Store, bucket: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """All that is in the bucket."""
    return store.objects(bucket), store.multiparts(bucket)


async def test_a_second_database_does_not_start(start: Start, store: Store, bucket: str) -> None:
    """On a place that is another's the start is refused, and what is there stays as it is."""
    async with start("one") as first:
        done, running = await first.here.upload(b"precious"), await half(first)
        before = everything(store, bucket)
        said = await refused(start, "two")
        assert said.startswith("ATTACHD_STORAGE=s3: this place belongs to another database")
        assert "ATTACHD_S3_PREFIX" in said
        assert everything(store, bucket) == before
        assert await first.here.fetch(done) == b"precious"
        assert (await first.patch(running, 7 * MIB, CONTENT[7 * MIB :])).status == 204
        assert await first.here.stored(running) == CONTENT


async def test_the_refusal_says_how_to_take_over(start: Start, store: Store, bucket: str) -> None:
    """With the words of the refusal in the object that it names, the start succeeds."""
    async with start("one"):
        pass
    said = await refused(start, "two")
    identity = said.partition(" put ")[2].split()[0]
    store.client().put_object(Bucket=bucket, Key=MARK, Body=identity.encode())
    async with start("two") as second:
        assert await second.here.fetch(await second.here.upload(b"mine")) == b"mine"
    await refused(start, "one")


async def test_files_newer_than_a_restored_database_stay(
    start: Start, tmp_path: Path, store: Store, bucket: str, log: io.StringIO
) -> None:
    """What was finished after the copy that is in use again was made is kept and told, also when it is old."""
    database = tmp_path / "one" / "var" / "attachd.db"
    async with start() as s3:
        before = await s3.here.upload(b"before")
    shutil.copy(database, tmp_path / "copy")
    async with start() as s3:
        await s3.here.upload(b"thereafter")
        assert len(s3.files()) == 2
    for left in database.parent.glob("attachd.db*"):
        left.unlink()
    shutil.copy(tmp_path / "copy", database)
    store.age(bucket, 100 * HOUR)
    async with start() as s3:
        s3.assert_only_files(len(b"before"), len(b"thereafter"))
        assert await s3.here.fetch(before) == b"before"
    (record,) = logged(log, "strangers_kept")
    assert (record["level"], record["finished"], record["known"]) == ("warning", 1, 1)


@pytest.mark.parametrize("wrong", ["prefix", "bucket"])
async def test_a_wrong_place_is_refused_and_uploads_resume_in_the_right_one(
    start: Start, store: Store, wrong: str
) -> None:
    """A start on a place without the database's mark says so; once the setting is right, an upload goes on."""
    async with start() as s3:
        path = await half(s3)
    other = store.make_bucket()
    changes = {"s3_prefix": "else/where/"} if wrong == "prefix" else {"s3_bucket": other}
    said = await refused(start, **changes)
    assert said.startswith("ATTACHD_STORAGE=s3: nothing of this database is here (no attachd-owner)")
    assert store.objects(other) == {}
    store.drop_bucket(other)
    async with start() as s3:
        assert (await s3.here.head(path)).offset == 7 * MIB
        assert (await s3.patch(path, 7 * MIB, CONTENT[7 * MIB :])).status == 204
        assert await s3.here.stored(path) == CONTENT


async def test_a_wrong_place_found_later_costs_no_upload(start: Start, store: Store, bucket: str) -> None:
    """Where the store was away at the start, uploads are 503 and keep their offset until the setting is right."""
    async with start() as s3:
        path = await half(s3)
    before, faulty = everything(store, bucket), s3.faulty
    faulty.down = "503"
    async with start(s3_prefix="else/where/") as s3:
        faulty.down = None
        answer = await s3.patch(path, 7 * MIB, CONTENT[7 * MIB :])
        assert (answer.status, answer.slug, answer.offset) == (503, "storage-unavailable", 7 * MIB)
        await s3.sweep()
        assert await s3.ops("/readyz") == 503
        assert (await s3.here.head(path)).status == 200
    assert everything(store, bucket) == before
    async with start() as s3:
        assert (await s3.patch(path, 7 * MIB, CONTENT[7 * MIB :])).status == 204
        assert await s3.here.stored(path) == CONTENT


async def test_a_foreign_place_found_later_is_left_alone(start: Start, store: Store, bucket: str) -> None:
    """A new database whose place turns out to be another's takes no bytes, and removes none of the other's."""
    async with start("one") as s3:
        await half(s3)
        await s3.here.upload(b"precious")
    store.age(bucket, 100 * HOUR)
    before, faulty = everything(store, bucket), s3.faulty
    faulty.down = "503"
    async with start("two") as s3:
        faulty.down = None
        path = await s3.here.create(5)
        assert (await s3.patch(path, 0, b"hello")).status == 503
        assert (await s3.here.ask("DELETE", path, TUS)).status == 204
        s3.here.service.janitor._orphans_due = 0
        await s3.sweep()
        assert await s3.ops("/readyz") == 503
    assert everything(store, bucket) == before


async def test_a_new_database_whose_store_was_away_settles_in_later(start: Start, faulty: FaultyStore) -> None:
    """The first request that needs the store makes the place this database's, and works."""
    faulty.down = "503"
    async with start() as s3:
        path = await s3.here.create(5)
        faulty.down = None
        assert (await s3.patch(path, 0, b"hello")).status == 204
        assert await s3.here.stored(path) == b"hello"
        await refused(start, "two")


async def test_a_404_that_is_not_the_stores_own_makes_no_place_free(
    start: Start, store: Store, bucket: str, faulty: FaultyStore
) -> None:
    """A router before the store that knows it not at the moment does not make it a new database's."""
    async with start("one"):
        owner = mark(store, bucket)
    faulty.fault("get_object", what=status(404), times=None)
    async with start("two"):
        pass
    assert mark(store, bucket) == owner


async def test_the_mark_survives_sweep_and_removal(start: Start, store: Store, bucket: str) -> None:
    """However old, the mark is no orphan; and the next start finds it."""
    async with start() as s3:
        owner = mark(store, bucket)
        path = await half(s3)
        assert (await s3.here.ask("DELETE", path, TUS)).status == 204
        store.age(bucket, 100 * HOUR)
        s3.here.service.janitor._orphans_due = 0
        await s3.sweep()
        s3.assert_only_files()
        assert mark(store, bucket) == owner
    async with start() as s3:
        assert mark(store, bucket) == owner == (await s3.here.service.metadata.identity()).encode() + b"\n"


async def test_a_place_that_became_anothers_is_noticed_before_anything_is_removed(
    start: Start, store: Store, bucket: str
) -> None:
    """Each look for orphans asks whose the place is; from then on nothing is stored or removed there either."""
    async with start("one") as s3:
        s3.here.service.janitor._orphans_due = 0
        path = await half(s3)
        store.client().put_object(Bucket=bucket, Key=MARK, Body=b"another")
        store.client().put_object(Bucket=bucket, Key=f"{PREFIX}u_{'a' * 13}/tail.{'0' * 16}", Body=b"theirs")
        store.age(bucket, 100 * HOUR)
        before = everything(store, bucket)
        await s3.sweep()
        assert (await s3.patch(path, 7 * MIB, CONTENT[7 * MIB :])).status == 503
        assert (await s3.here.head(path)).offset == 7 * MIB
        assert everything(store, bucket) == before
