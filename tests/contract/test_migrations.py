"""What a migration makes of rows that were there before."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine

from service.metadata.migrate import migrate
from service.metadata.sql import SqlMetadata
from service.metadata.upgrade import upgrade
from service.model import FileId, Verdict


def made(url: str, revision: str) -> None:
    """The database has the schema of that revision."""
    with create_engine(url, poolclass=NullPool).begin() as connection:
        upgrade(connection, revision)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database with a file, from before there were verdicts, that was brought up to date."""
    url = f"sqlite:///{tmp_path}/metadata.db"
    made(url, "0003")
    with closing(sqlite3.connect(tmp_path / "metadata.db")) as connection, connection:
        connection.execute(
            "INSERT INTO files (id, upload_id, key, size, block_size, root_algorithm, root, block_xxh128, created_at,"
            " issuer) VALUES ('f_1', 'u_1', 'k', 0, 1, 'xxh128', x'00', x'', 1.0, 'chat')"
        )
    migrate(url)
    return url


async def test_files_from_before_verdicts_are_unscanned(url: str) -> None:
    """A file that was there before there was a scanner is there, and nobody says that it is clean."""
    store = SqlMetadata(url, durability="none")
    await store.open()
    try:
        file = await store.file(FileId("f_1"))
    finally:
        await store.close()
    assert file is not None
    assert file.verdict is Verdict.UNSCANNED
