"""The blocking-call detector of conftest.py does detect, so that its silence means something."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
from blockbuster import BlockingError

from service.keyfile import KeyFile
from service.keyset import KeySetError


async def test_a_blocking_call_of_the_service_on_the_loop_fails(tmp_path):
    """Looking at the key file on the event loop raises BlockingError."""
    with pytest.raises(BlockingError):
        KeyFile(tmp_path / "keys.json").refresh()


async def test_a_blocking_call_in_a_thread_is_fine(tmp_path):
    """The same in a thread does its work, SQLite included."""
    with pytest.raises(KeySetError):
        await asyncio.to_thread(KeyFile(tmp_path / "keys.json").refresh)
    database = await asyncio.to_thread(sqlite3.connect, tmp_path / "some.db", check_same_thread=False)
    await asyncio.to_thread(database.execute, "select 1")
    await asyncio.to_thread(database.close)
