"""SQLite passes the metadata contract, and what is SQLite's own."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from service.metadata import delivering, reads
from service.metadata.base import MetadataUnavailable
from service.metadata.engine import Durability, Transactions
from service.metadata.migrate import migrate
from service.metadata.sql import SqlMetadata
from service.model import Upload, UploadId
from tests.contract.metadata import MakeStore, MetadataContract
from tests.contract.metadata_values import NOW, created, leased, make_upload, part, step, use_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with the schema, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "metadata.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def url(migrated: Path, tmp_path: Path) -> str:
    """A database of the test's own."""
    path = shutil.copy(migrated, tmp_path / "metadata.db")
    return f"sqlite:///{path}"


class TestSqlite(MetadataContract):
    """The contract on a file of its own for each test."""

    @pytest.fixture
    async def make_store(self, url: str) -> AsyncIterator[MakeStore]:
        stores: list[SqlMetadata] = []

        async def make() -> SqlMetadata:
            store = SqlMetadata(url, durability="none")
            await store.open()
            stores.append(store)
            return store

        yield make
        for store in stores:
            await store.close()


@pytest.fixture
async def store(url: str) -> AsyncIterator[SqlMetadata]:
    async with opened(url) as store:
        yield store


@asynccontextmanager
async def opened(url: str, durability: Durability = "complete", busy_seconds: float = 10) -> AsyncIterator[SqlMetadata]:
    store = SqlMetadata(url, durability=durability, busy_seconds=busy_seconds)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def path_of(url: str) -> str:
    return url.removeprefix("sqlite:///")


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Somebody else is writing."""
    with closing(sqlite3.connect(path_of(url), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[Transactions]:
    """Whose they are, for each commit of a store from now on."""
    seen: list[Transactions] = []
    commit = Transactions.commit

    def note(transactions: Transactions) -> None:
        seen.append(transactions)
        commit(transactions)

    monkeypatch.setattr(Transactions, "commit", note)
    return seen


async def together(url: str, *calls: Any) -> list[Any]:
    """The results of calls that all wait before the first of them can begin."""
    with locked(url):
        tasks = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0)
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_waiting_steps_share_a_commit(store: SqlMetadata, url: str, commits: list[Transactions]) -> None:
    """Forty steps that wait together are committed in far fewer transactions, each acknowledged."""
    uploads = [(await leased(store))[0] for _ in range(40)]
    commits.clear()
    moved = await together(
        url, *(store.advance(each.id, epoch=1, from_offset=0, step=step(9), now=NOW) for each in uploads)
    )
    assert [upload.offset for upload in moved] == [9] * 40
    # The first may have been taken alone, before the others were there.
    assert len(commits) <= 2


async def test_refused_step_leaves_its_neighbours_alone(store: SqlMetadata, url: str) -> None:
    """In a group one stale step, and one creation refused half-way, are told so; all others are committed."""
    uploads = [(await leased(store))[0] for _ in range(10)]
    taken = make_upload(file_id=uploads[0].file_id)
    calls: list[Any] = [
        store.advance(
            each.id, epoch=2 if number == 5 else 1, from_offset=0, now=NOW, step=step(9, parts=[part(0, 0, 9)])
        )
        for number, each in enumerate(uploads)
    ]
    results = await together(url, *calls, store.create_upload(taken, use_of(taken)))
    assert [type(result).__name__ for result in results] == ["Upload"] * 5 + ["Conflict"] + ["Upload"] * 4 + [
        "FileIdTaken"
    ]
    assert await store.ledger(uploads[5].id) == ()
    assert await store.ledger(uploads[9].id) == (part(0, 0, 9),)
    assert await store.link_use("backend", taken.terms.jti) is None


async def test_driver_error_is_told_to_one(store: SqlMetadata, url: str) -> None:
    """A work at which the driver fails is unavailable, with the cause kept; the rest of the group is committed."""
    uploads = [(await leased(store))[0] for _ in range(4)]
    calls: list[Any] = [store.advance(each.id, epoch=1, from_offset=0, step=step(9), now=NOW) for each in uploads]
    broken = store._write(lambda connection: connection.exec_driver_sql("SELECT * FROM absent"))
    *results, error = await together(url, *calls, broken)
    assert [result.offset for result in results] == [9] * 4
    assert isinstance(error, MetadataUnavailable)
    assert "no such table" in str(error)
    assert error.__cause__ is not None


async def test_failed_commit_fails_the_group(store: SqlMetadata, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the commit fails nobody in the group is told a success, nothing of it is there, and the store goes on."""
    uploads = [(await leased(store))[0] for _ in range(4)]

    def fail(_: Transactions) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as failing:
        failing.setattr(Transactions, "commit", fail)
        results = await together(
            url, *(store.advance(each.id, epoch=1, from_offset=0, step=step(9), now=NOW) for each in uploads)
        )
    assert {type(result) for result in results} == {MetadataUnavailable}
    assert [upload.offset for upload in (await store.uploads([each.id for each in uploads])).values()] == [0] * 4
    moved = await store.advance(uploads[0].id, epoch=1, from_offset=0, step=step(9), now=NOW)
    assert moved.offset == 9


class Held:
    """A work that stops in the middle until it is let go."""

    def __init__(self) -> None:
        self._entered, self._let_go = threading.Event(), threading.Event()

    def __call__(self, connection: Connection) -> None:
        self._entered.set()
        self._let_go.wait(10)

    async def entered(self) -> None:
        assert await asyncio.to_thread(self._entered.wait, 10)

    def let_go(self) -> None:
        self._let_go.set()


async def test_cancelled_before_it_began(store: SqlMetadata) -> None:
    """A creation that is cancelled while it waits for its turn is not made."""
    held, upload = Held(), make_upload()
    first = asyncio.ensure_future(store._write(held))
    await held.entered()
    waiting = asyncio.ensure_future(store.create_upload(upload, use_of(upload)))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    held.let_go()
    await first
    assert await store._write(lambda connection: reads.upload(connection, upload.id)) is None


async def test_cancelled_after_it_began(store: SqlMetadata) -> None:
    """A caller that goes away while its work runs takes no answer from the others of the group."""
    first, second, upload = Held(), Held(), make_upload()
    calls = [asyncio.ensure_future(store._write(first))]
    await first.entered()
    calls.append(asyncio.ensure_future(store._write(second)))
    creation = asyncio.ensure_future(store.create_upload(upload, use_of(upload)))
    await asyncio.sleep(0)
    first.let_go()
    await second.entered()
    calls[1].cancel()
    await asyncio.sleep(0)
    second.let_go()
    await asyncio.wait_for(creation, 10)
    assert await store.upload(upload.id) == upload


async def test_write_lock_is_taken_at_the_start(store: SqlMetadata, url: str) -> None:
    """What a change reads before it writes cannot be changed by another process in between."""

    def look(connection: Connection) -> str:
        reads.totals(connection)
        with closing(sqlite3.connect(path_of(url), timeout=0, isolation_level=None)) as another:
            try:
                another.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                return str(error)
        return "free"

    assert "locked" in await store._write(look)


async def test_full_disk_keeps_what_was_acknowledged(store: SqlMetadata) -> None:
    """Once the database cannot grow a creation is unavailable; what was made before is there, and space heals it."""

    def limit_pages(connection: Connection) -> None:
        used = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={used + 8}")

    await store._write(limit_pages)
    made: list[Upload] = []

    async def fill() -> None:
        for _ in range(500):
            made.append(await created(store, metadata="x" * 500))

    with pytest.raises(MetadataUnavailable, match="full"):
        await fill()
    assert made
    assert len(await store.uploads([upload.id for upload in made])) == len(made)
    # The limit was the connection's, and that one is gone.
    await created(store)


async def test_who_waits_for_a_lock_waits_once(url: str) -> None:
    """What comes while a change waits for another process fails with it; the next is tried again."""
    async with opened(url, busy_seconds=0.2) as store:
        with locked(url):
            first = asyncio.ensure_future(created(store))
            while store._writer._opened is None or not store._writer._queue.empty():
                await asyncio.sleep(0)
            others = [asyncio.ensure_future(created(store)) for _ in range(200)]
            await asyncio.wait({first})
            assert all(other.done() for other in others)
            for each in (first, *others):
                assert isinstance(each.exception(), MetadataUnavailable)
        await created(store)


async def test_locked_database_is_unavailable(url: str) -> None:
    """While another process writes for longer than the time-out, writes are unavailable; reads are not."""
    async with opened(url, busy_seconds=0.05) as store:
        upload = await created(store)
        with locked(url):
            with pytest.raises(MetadataUnavailable, match="locked"):
                await created(store)
            with pytest.raises(MetadataUnavailable, match="locked"):
                await store.probe()
            assert await store.upload(upload.id) == upload
        await store.probe()


async def test_V1_what_is_handed_out_has_reached_the_disk(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """V1: Events are taken in by a durable step, so no crash takes back a change that a receiver has heard of."""

    def level(connection: Connection, **_: object) -> int:
        return int(connection.exec_driver_sql("PRAGMA synchronous").scalar_one())

    monkeypatch.setattr(delivering, "take_in", level)
    async with opened(url, "complete") as store:
        assert await store.outbox.take_in("chat", lambda _: True, now=NOW, limit=1) == 2


@pytest.mark.parametrize(("durability", "relaxed", "durable"), [("none", 0, 0), ("complete", 1, 2), ("always", 2, 2)])
async def test_synchronous_is_as_durability_says(url: str, durability: Durability, relaxed: int, durable: int) -> None:
    """A transaction is synced as the setting says, and under `complete` only the durable ones in full."""

    def level(connection: Connection) -> Any:
        return connection.exec_driver_sql("PRAGMA synchronous").scalar_one()

    async with opened(url, durability) as store:
        levels = [await store._write(level, durable=wanted) for wanted in (False, True, False)]
        assert levels == [relaxed, durable, relaxed]
        mode = await store._read(lambda connection: connection.exec_driver_sql("PRAGMA journal_mode").scalar_one())
        assert mode == "wal"


async def test_closed_store_is_unavailable(url: str) -> None:
    """Before open and after close nothing hangs."""
    store = SqlMetadata(url, durability="none")
    with pytest.raises(MetadataUnavailable):
        await store.totals()
    await store.open()
    await store.close()
    await store.close()
    with pytest.raises(MetadataUnavailable):
        await store.probe()


def writer(what: str, url: str) -> list[str]:
    return [sys.executable, "-m", "tests.contract.sqlite_writer", what, url]


@pytest.mark.parametrize("lines", [1, 40, 300])
async def test_killed_writer_loses_no_acknowledged_step(store: SqlMetadata, url: str, lines: int) -> None:
    """After kill -9 in a stream of steps all that were acknowledged are there, offset and ledger alike."""
    process = await asyncio.create_subprocess_exec(*writer("advance", url), stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    upload_id = UploadId((await process.stdout.readline()).decode().strip())
    for _ in range(lines):
        await process.stdout.readline()
    process.kill()
    told = (await process.stdout.read()).split(b"\n")
    await process.wait()
    acknowledged = max([lines * 10, *(int(line) for line in told[:-1])])
    upload = await store.upload(upload_id)
    assert upload is not None
    assert upload.offset >= acknowledged
    assert await store.ledger(upload_id) == (part(0, 0, upload.offset),)


async def test_two_processes_share_the_file(store: SqlMetadata, url: str) -> None:
    """Two processes that create under the same links at once make one upload for each link, and none fails."""
    names = [f"shared-{number}" for number in range(60)]
    processes = [
        await asyncio.create_subprocess_exec(
            *writer("create", url), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT
        )
        for _ in range(2)
    ]
    said = await asyncio.gather(*(process.communicate(" ".join(names).encode()) for process in processes))
    assert sum(int(out) for out, _ in said) == 60
    assert (await store.totals()).uploads_open == 60
