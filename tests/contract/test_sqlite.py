"""SQLite passes the metadata contract, and what is SQLite's own."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.metadata.migrate import migrate
from service.metadata.sql import SqlMetadata
from tests.contract.metadata import MakeStore, MetadataContract


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
