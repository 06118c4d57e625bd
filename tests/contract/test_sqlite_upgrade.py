"""A database of an earlier version, with rows in it, after its migration: as if it had been of this version always."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from service.metadata.control import Refs, Usage
from service.metadata.engine import make_engine, parse_url
from service.metadata.migrate import migrate
from service.metadata.sql import SqlMetadata
from service.metadata.upgrade import upgrade
from service.model import FileId

NOW = 1_000_000.0


def made_at(url: str, revision: str) -> None:
    """A database with the schema of then."""
    engine = make_engine(parse_url(url), writes=True, durability="none", busy_seconds=10, creates=True)
    with engine.begin() as connection:
        upgrade(connection, revision)


def put(database: sqlite3.Connection, table: str, **values: Any) -> None:
    names = ", ".join(f'"{name}"' for name in values)
    database.execute(f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(values))})", list(values.values()))


def upload(database: sqlite3.Connection, name: str, state: str, owner: str | None, **values: Any) -> None:
    row = {
        "id": name, "protocol": "tus", "issuer": "chat", "jti": f"jti-{name}", "owner": owner, "terms": "{}",
        "file_id": f"f_{name}", "block_size": 100, "strong_hash": 0, "created_at": NOW, "expires_at": NOW + 10,
        "updated_at": NOW, "state": state, "offset": 5, "length": 20, "deferred": 0, "concat_kind": "none", "epoch": 1,
        "lease_asked": 0, "suspect": 0,
    }  # fmt: skip
    put(database, "uploads", **(row | values))


def file(database: sqlite3.Connection, name: str, owner: str | None, **values: Any) -> None:
    row = {
        "id": f"f_{name}", "upload_id": name, "key": f"files/{name}", "size": 20, "block_size": 100,
        "root_algorithm": "xxh128", "root": b"r" * 16, "block_xxh128": b"r" * 16, "created_at": NOW, "issuer": "chat",
        "owner": owner,
    }  # fmt: skip
    put(database, "files", **(row | values))


@pytest.fixture
def url(tmp_path: Path) -> str:
    """Of revision 0003, with a file of each kind, unfinished uploads, and events."""
    url = f"sqlite:///{tmp_path}/old.db"
    made_at(url, "0003")
    with closing(sqlite3.connect(tmp_path / "old.db")) as database:
        upload(database, "a", "ready", "u1", terms='{"hold_seconds": 5}')
        file(database, "a", "u1", expires_at=NOW + 5)
        upload(database, "b", "ready", "u1", terms='{"hold_seconds": 5, "ttl_seconds": 50}')
        file(database, "b", "u1", expires_at=NOW + 5)
        file(database, "c", "u2", expires_at=NOW + 7)
        file(database, "d", None, ref="chat:7")
        file(database, "e", "u1", ref="chat:7", deleted_at=NOW)
        upload(database, "f", "receiving", "u1")
        upload(database, "g", "receiving", "u1", length=None)
        upload(database, "h", "ready", "u1", concat_kind="partial")
        upload(database, "i", "expired", "u1")
        upload(database, "j", "receiving", None)
        for number, subject in enumerate(("a", "f_c", "forgotten")):
            put(database, "events", id=f"evt_{number}", type="x", subject=subject, created_at=NOW, data="{}")
        database.commit()
    migrate(url)
    return url


async def test_an_upgrade_counts_what_owners_have_and_knows_claims(url: str) -> None:
    """Counters, references, ends of claimed files and issuers of events are what they would have been."""
    store = SqlMetadata(url, durability="none")
    await store.open()
    try:
        assert await store.miscounted() == {}
        assert await store.usage("chat", "u1") == Usage(files=2, file_bytes=40, pending=2, reserved=20 + 5 + 20)
        assert await store.usage("chat", "u2") == Usage(files=1, file_bytes=20)
        claimed = {name: (await store.claim_file(FileId(f"f_{name}"), "r", now=NOW)).expires_at for name in "abcd"}
        assert claimed == {"a": None, "b": NOW + 50, "c": NOW + 7, "d": None}
        refs = await store.refs([FileId("f_d"), FileId("f_e")])
        assert list(refs.values()) == [Refs(2, ("chat:7", "r")), Refs()]
        assert [event.issuer for _, event in await store.events()] == ["chat", "chat", ""]
    finally:
        await store.close()
