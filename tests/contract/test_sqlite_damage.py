"""A database that lost bytes: refused with a clear word when it is opened, or where they are missed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from service.metadata.base import MetadataDamaged
from service.metadata.migrate import migrate
from service.metadata.sql import SqlMetadata
from service.model import UploadId
from tests.contract.metadata_values import created


def page_of(database: bytes, content: bytes) -> int:
    """The number, from 0, of a page with that in it."""
    return database.index(content) // 4096


@pytest.fixture
async def aged(tmp_path: Path) -> Path:
    """A database of many pages, all in its file."""
    path = tmp_path / "metadata.db"
    await asyncio.to_thread(migrate, f"sqlite:///{path}")
    store = SqlMetadata(f"sqlite:///{path}", durability="none")
    await store.open()
    for _ in range(60):
        await created(store, metadata="x" * 500)
    await store.close()
    assert path.stat().st_size > 10 * 4096
    return path


def zeroed(database: bytes) -> bytes:
    """A page in the middle was lost."""
    at = 4096 * page_of(database, b"x" * 500)
    return database[:at] + bytes(4096) + database[at + 4096 :]


def cut(database: bytes) -> bytes:
    """The second half was lost."""
    return database[: len(database) // 8192 * 4096]


def other_key(database: bytes) -> bytes:
    """An index and its table disagree: the key of one upload is another one in the index."""
    with_row = page_of(database, b"x" * 500)
    keys = [found.start() for found in re.finditer(rb"u_[a-z2-7]{26}", database)]
    at = next(at for at in keys if b"xxxx" not in database[at // 4096 * 4096 :][:4096] and at // 4096 != with_row)
    return database[: at + 27] + (b"a" if database[at + 27 : at + 28] != b"a" else b"b") + database[at + 28 :]


@pytest.mark.parametrize("damage", [zeroed, cut, other_key])
async def test_damage_is_found_when_a_database_is_opened(aged: Path, damage: Callable[[bytes], bytes]) -> None:
    """A database that lost pages, or whose tables and indexes disagree, is refused with what SQLite says of it."""
    aged.write_bytes(damage(aged.read_bytes()))
    store = SqlMetadata(f"sqlite:///{aged}", durability="none")
    with pytest.raises(MetadataDamaged, match=r"the database is damaged \(.+\)") as refused:
        await store.open()
    assert "\n" not in str(refused.value)


async def test_damage_is_not_looked_for_without_end(aged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time for it is over the database is opened; damage is then told by whoever comes by."""
    monkeypatch.setattr("service.metadata.damage._STEPS", 1)
    content = aged.read_bytes()
    lost = re.findall(rb"u_[a-z2-7]{26}", content[4096 * page_of(content, b"x" * 500) :][:4096])
    aged.write_bytes(zeroed(content))
    store = SqlMetadata(f"sqlite:///{aged}", durability="none", check_seconds=1e-9)
    await store.open()
    found = await asyncio.gather(
        *(store.upload(UploadId(upload_id.decode())) for upload_id in lost), return_exceptions=True
    )
    await store.close()
    assert any(isinstance(each, MetadataDamaged) for each in found)
