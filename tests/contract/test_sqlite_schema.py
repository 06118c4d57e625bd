"""The schema on SQLite: what the migrations make, who refuses what, and which index serves which query."""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import URL, Connection, NullPool, create_engine, insert

from service.metadata import controlling, crashes, delivering, leases, owning, reads, schema, writes
from service.metadata.base import MetadataDamaged, MetadataError, MetadataUnavailable, SchemaMismatch
from service.metadata.engine import make_engine, parse_url
from service.metadata.migrate import migrate
from service.metadata.outbox import Due, Verdict
from service.metadata.rows import dump_event
from service.metadata.sql import SqlMetadata
from service.metadata.upgrade import upgrade
from service.model import FileId, State, UploadId
from tests.contract.metadata_values import NOW, make_event

ROOT = Path(__file__).parents[2]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database with the schema."""
    url = f"sqlite:///{tmp_path}/metadata.db"
    migrate(url)
    return url


def path_of(url: str) -> str:
    return url.removeprefix("sqlite:///")


async def refusal(url: str) -> MetadataError:
    """What open() raises."""
    store = SqlMetadata(url, durability="none")
    with pytest.raises(MetadataError) as refused:
        await store.open()
    return refused.value


@pytest.mark.parametrize(("version", "says"), [(None, "no schema"), ("0000", "0000"), ("9999", "newer")])
async def test_other_schema_is_refused(url: str, version: str | None, says: str) -> None:
    """A database without the schema, or with an older or newer one, is refused and the command that helps named."""
    with closing(sqlite3.connect(path_of(url))) as connection:
        if version is None:
            connection.execute("DROP TABLE alembic_version")
        else:
            connection.execute("UPDATE alembic_version SET version_num = ?", [version])
        connection.commit()
    refused = await refusal(url)
    assert isinstance(refused, SchemaMismatch)
    assert says in str(refused)
    assert "`attachd migrate`" in str(refused)


async def test_broken_database_is_named(tmp_path: Path) -> None:
    """A file that is no database is a permanent error that says so."""
    path = tmp_path / "broken.db"
    path.write_bytes(b"not a database" * 1000)
    refused = await refusal(f"sqlite:///{path}")
    assert isinstance(refused, MetadataDamaged)
    assert "file is not a database" in str(refused)


async def test_a_database_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """Only a migration makes one: an empty file in the place of a disk that is not mounted would be taken for it."""
    url = f"sqlite:///{tmp_path}/metadata.db"
    refused = await refusal(url)
    assert isinstance(refused, SchemaMismatch)
    assert "`attachd migrate`" in str(refused)
    assert not list(tmp_path.iterdir())


async def test_a_name_with_characters_of_urls_is_a_name(tmp_path: Path) -> None:
    """A path is a path, whatever is in it."""
    folder = tmp_path / "a b?c#d%41"
    url = URL.create("sqlite", database=str(folder / "metadata.db")).render_as_string()
    await asyncio.to_thread(migrate, url)
    assert await identity(url)
    assert sorted(path.name for path in folder.iterdir()) == ["metadata.db"]


async def test_database_out_of_reach_is_unavailable(tmp_path: Path) -> None:
    """A directory that is not there may come back, so it is worth a retry."""
    refused = await refusal(f"sqlite:///{tmp_path}/absent/metadata.db")
    assert isinstance(refused, MetadataUnavailable)
    assert "unable to open" in str(refused)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_memory_is_refused(url: str) -> None:
    """A database that no other process could see is refused at once."""
    with pytest.raises(MetadataError, match="must be a file"):
        SqlMetadata(url, durability="none")


def test_migrations_make_the_schema(tmp_path: Path) -> None:
    """What the migrations make is what the tables of `schema` say, indexes and their conditions included."""
    made = make_engine(
        parse_url(f"sqlite:///{tmp_path}/old.db"), writes=True, durability="none", busy_seconds=1, creates=True
    )
    with made.begin() as connection:
        upgrade(connection)
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []
        migrated_ddl = ddl(connection)
    fresh = create_engine("sqlite://")
    with fresh.begin() as connection:
        schema.metadata.create_all(connection)
        schema.revision.create(connection)
        declared_ddl = ddl(connection)
    fresh.dispose()
    assert migrated_ddl == declared_ddl


def test_an_empty_database_needs_no_migration(url: str) -> None:
    """What it is given at once is what the migrations find nothing to do in."""
    with create_engine(url, poolclass=NullPool).begin() as connection:
        before = ddl(connection)
        upgrade(connection)
        assert ddl(connection) == before


def test_tables_of_others_do_not_stand_for_the_schema(tmp_path: Path) -> None:
    """A database that is not empty, and has never been migrated, gets the schema beside what is there."""
    url = f"sqlite:///{tmp_path}/shared.db"
    with closing(sqlite3.connect(path_of(url))) as connection:
        connection.execute("CREATE TABLE theirs (id TEXT)")
    migrate(url)
    with create_engine(url, poolclass=NullPool).begin() as connection:
        assert {"theirs", "uploads", "alembic_version"} <= set(ddl(connection))


def ddl(connection: Connection) -> dict[str, set[str]]:
    """By name, what each CREATE lists in no order, with the blanks evened out: an added column is on the last line."""
    rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {
        name: {" ".join(each.strip(" )").split()) for each in re.split(r"[,\n]", text)} - {""} for name, text in rows
    }


def test_revision_is_the_newest(url: str) -> None:
    """The code expects the schema that the newest migration makes."""
    with closing(sqlite3.connect(path_of(url))) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [(schema.REVISION,)]


async def identity(url: str) -> str:
    """Which database that is."""
    store = SqlMetadata(url, durability="none")
    await store.open()
    try:
        return await store.identity()
    finally:
        await store.close()


async def test_each_database_has_an_identity_of_its_own(url: str, tmp_path: Path) -> None:
    """Two databases never have the same one; the same database keeps its own over a migration."""
    other = f"sqlite:///{tmp_path}/other.db"
    await asyncio.to_thread(migrate, other)
    first = await identity(url)
    assert first != await identity(other)
    await asyncio.to_thread(migrate, url)
    assert await identity(url) == first


async def test_a_database_of_the_first_version_gets_an_identity(url: str) -> None:
    """One that was made before databases had any is given it by the migrations, and keeps its rows."""
    with closing(sqlite3.connect(path_of(url))) as connection:
        for statement in (
            "DROP TABLE identity",
            "DROP TABLE duties",
            "DROP TABLE run",
            "DROP TABLE endpoints",
            "DROP TABLE deliveries",
            "DROP INDEX events_created",
            "DROP INDEX uploads_suspect",
            "ALTER TABLE uploads DROP COLUMN suspect",
            "ALTER TABLE uploads DROP COLUMN tail",
            "ALTER TABLE files DROP COLUMN verdict",
            *(f"DROP TABLE {name}" for name in ("file_refs", "owners", "jobs", "revocations", "requests")),
            "DROP INDEX uploads_owner",
            "ALTER TABLE uploads DROP COLUMN reserved",
            "DROP INDEX files_owner",
            "ALTER TABLE files DROP COLUMN lives_until",
            "ALTER TABLE events DROP COLUMN issuer",
        ):
            connection.execute(statement)
        connection.execute("UPDATE alembic_version SET version_num = '0001'")
        connection.execute("INSERT INTO links VALUES ('backend', 'kept', 0, '[]', 0, 0, 1)")
        connection.commit()
    await asyncio.to_thread(migrate, url)
    assert len(await identity(url)) == 32
    with closing(sqlite3.connect(path_of(url))) as connection:
        assert connection.execute("SELECT jti FROM links").fetchall() == [("kept",)]


def test_migrate_makes_file_and_directory(tmp_path: Path) -> None:
    """A first start needs nothing but the setting; a second migration changes nothing."""
    url = f"sqlite:///{tmp_path}/new/er/metadata.db"
    migrate(url)
    before = Path(path_of(url)).read_bytes()
    migrate(url)
    assert Path(path_of(url)).read_bytes() == before


def test_migrations_at_once(tmp_path: Path) -> None:
    """Of several processes that migrate at once each finds the schema there in the end."""
    url = f"sqlite:///{tmp_path}/metadata.db"
    code = f"from service.metadata.migrate import migrate; migrate({url!r})"
    processes = [os.posix_spawn(sys.executable, [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(ROOT)})
                 for _ in range(2)]  # fmt: skip
    assert [os.waitpid(process, 0)[1] for process in processes] == [0, 0]


def test_migrate_refuses_a_newer_schema(url: str) -> None:
    """The schema of a newer version is left alone."""
    with closing(sqlite3.connect(path_of(url))) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    with pytest.raises(SchemaMismatch, match="newer"):
        migrate(url)


def janitor(connection: Connection) -> None:
    """All that is asked again and again, whatever the number of rows."""
    reads.expired_uploads(connection, NOW, 10)
    reads.finishing_uploads(connection, 10)
    reads.expired_files(connection, NOW, 10)
    reads.file_keys(connection, 10)
    reads.promised_bytes(connection)
    reads.totals(connection)
    reads.pending_finals(connection, UploadId("u_x"))
    crashes.suspect_uploads(connection, 10)
    reads.uploads_named(connection, ["u_" + "a" * 13, "u_" + "b" * 26])
    writes.purge(connection, NOW, NOW, 10)
    delivering.outlook(connection, "chat", NOW, 10)
    delivering.take_in(connection, "chat", lambda _: True, NOW, 10)
    delivering.settle(connection, "chat", Due(1, "f_x", 0, make_event()), Verdict("ok", delivered=True), NOW)
    delivering.backlog(connection, "chat")
    delivering.forget(connection, NOW, 10)
    leases.renew(connection, "node", NOW)
    leases.asked(connection, "node")
    leases.drop(connection, "node")
    control(connection)


def control(connection: Connection) -> None:
    """What the control API asks, and what is asked for it."""
    for owner, ref in (("u1", None), (None, "chat:7"), ("u1", "chat:7")):
        controlling.files_of(connection, "backend", owner, ref, None, 10)
    for state in State:
        controlling.uploads_in(connection, "backend", state, None, 10)
    controlling.open_uploads_of(connection, "backend", "u1", None, 10)
    controlling.ended_of(connection, "backend", "u1", NOW, None, 10)
    controlling.deleted_of(connection, "backend", "u1", NOW, None, 10)
    controlling.refs(connection, [FileId("f_x")])
    controlling.open_jobs(connection, 10)
    controlling.revoked(connection, 7)
    controlling.newest_event(connection)
    controlling.forget(connection, NOW, NOW, NOW, 10)
    owning.usage(connection, "backend", "u1")


def test_no_query_walks_a_whole_table(url: str) -> None:
    """What janitor and requests ask goes through an index that fits, whatever the number of rows."""
    engine = create_engine(url, poolclass=NullPool)
    asked: list[str] = []
    with engine.connect() as connection:
        # an endpoint that has something before it, so that all is asked that ever is
        delivering.register(connection, {"chat": "https://chat.example/"})
        connection.execute(insert(schema.events), dump_event(make_event()))
        raw: Any = connection.connection.dbapi_connection
        raw.set_trace_callback(asked.append)
        janitor(connection)
        raw.set_trace_callback(None)
        statements = [text for text in asked if not text.startswith("BEGIN")]
        plans = [
            (row.detail, text)
            for text in statements
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")
        ]
    assert len(statements) > 10
    # A walk along the key of a table is a walk through the table.
    walks = [
        (detail, text)
        for detail, text in plans
        if detail.startswith("SCAN ") and ("USING" not in detail or "autoindex" in detail)
    ]
    assert walks == []
    assert [detail for detail, text in plans if "uploads.id >=" in text] == [
        "SEARCH uploads USING INDEX sqlite_autoindex_uploads_1 (id>? AND id<?)"
    ] * 2
    sums = [detail for detail, text in plans if "sum(" in text]
    assert sums[:3] == [
        "SCAN uploads USING COVERING INDEX uploads_receiving",
        "SCAN files USING COVERING INDEX files_live",
        "SCAN uploads USING COVERING INDEX uploads_receiving",
    ]
