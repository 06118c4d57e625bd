"""A start that cannot be: one line that names the setting, and nothing is touched before."""

from __future__ import annotations

import asyncio
import io
import json
import os
import socket
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from service import runtime
from service.directory import LOCK_NAME
from service.starting import CannotStart
from tests.web.harness import TUS, Site, site


async def refusal(folder: Path, **changes: Any) -> str:
    """What a start says that is refused."""
    with pytest.raises(CannotStart) as caught:
        async with site(folder, **changes):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another process holds the database."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


async def test_a_second_service_on_a_directory_does_not_start(tmp_path: Path) -> None:
    """It names the directory and the setting, and the first one's leases stay as they are."""
    async with site(tmp_path) as here:
        path = await here.create(10)
        now = here.service.context.clock.now()
        await here.service.metadata.acquire_lease(here.upload_id(path), "one:1", now=now, until=now + 60)
        said = await refusal(tmp_path)
        assert said.startswith("ATTACHD_DATA: ")
        assert str(tmp_path / "var") in said
        assert await here.service.metadata.lease(here.upload_id(path)) is not None


async def test_a_directory_is_free_once_its_service_has_ended(tmp_path: Path) -> None:
    """The lock goes with the service; its file stays."""
    for _ in range(2):
        async with site(tmp_path) as here:
            assert (here.service.settings.data / LOCK_NAME).exists()


@pytest.mark.parametrize(("setting", "name"), [("listen", "ATTACHD_LISTEN"), ("ops_listen", "ATTACHD_OPS_LISTEN")])
async def test_an_address_in_use_is_named(tmp_path: Path, setting: str, name: str) -> None:
    """The line has the setting and the address, and no state was made for nothing."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        said = await refusal(tmp_path, **{setting: address})
    assert said == f"{name}: cannot listen on {address}: address already in use"
    assert not list((tmp_path / "var").glob("*.db"))


async def test_a_host_that_is_none_is_named(tmp_path: Path) -> None:
    """So has one that does not resolve."""
    said = await refusal(tmp_path, listen="host.invalid:80")
    assert said.startswith("ATTACHD_LISTEN: cannot listen on host.invalid:80: ")


async def test_a_directory_that_is_none_is_named(tmp_path: Path) -> None:
    """A file where the directory should be."""
    (tmp_path / "var").write_text("")
    said = await refusal(tmp_path)
    assert said == f"ATTACHD_DATA: {tmp_path / 'var'}: file exists"


async def test_a_database_that_is_none_is_named(tmp_path: Path) -> None:
    """A file of something else."""
    other = tmp_path / "notes.txt"
    other.write_text("nothing like a database" * 100)
    said = await refusal(tmp_path, database=f"sqlite:///{other}")
    assert said.startswith(f"ATTACHD_DATABASE: sqlite:///{other}: ")


async def test_keys_that_are_not_there_are_named(tmp_path: Path) -> None:
    """A key set that a setting names is not made."""
    said = await refusal(tmp_path, keys=str(tmp_path / "none.json"))
    assert said.startswith(f"ATTACHD_KEYS: no key set at {tmp_path / 'none.json'}")


async def test_a_locked_database_is_waited_for_aloud_and_not_for_long(
    tmp_path: Path, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that waits for another process says so, and gives up with a line that names the database."""
    async with site(tmp_path):
        pass
    monkeypatch.setattr(runtime, "_SAY_SECONDS", 0.05)
    monkeypatch.setattr(runtime, "_DATABASE_SECONDS", 0.5)
    with locked(tmp_path / "var" / "attachd.db"):
        said = await refusal(tmp_path)
    assert said.startswith("ATTACHD_DATABASE: ")
    assert "attachd.db" in said
    assert "locked" in said
    assert "database_awaited" in log.getvalue()


async def test_keys_that_everybody_can_read_are_told_of(tmp_path: Path, log: io.StringIO) -> None:
    """A warning at the start, with the kids that are in force."""
    async with site(tmp_path) as here:
        here.service.settings.keys_path.chmod(0o644)
    log.truncate(0)
    async with site(tmp_path) as here:
        records = [json.loads(line) for line in log.getvalue().lstrip("\0").splitlines()]
        (loaded,) = [record for record in records if record["event"] == "keys_loaded"]
        assert loaded["kids"] == [here.key.kid]
        assert "keys_exposed" in [record["event"] for record in records]


# --- Unix sockets ----------------------------------------------------------------------------


def asked(path: Path) -> bytes:
    """What who listens there answers to OPTIONS."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(30)
        line.connect(str(path))
        line.sendall(b"OPTIONS /files HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return line.recv(100)


async def test_a_live_socket_is_not_taken_over(tmp_path: Path) -> None:
    """A second service on the same Unix socket does not start, and the first one is still reached."""
    path = tmp_path / "a.sock"
    async with site(tmp_path / "one", listen=f"unix:{path}"):
        said = await refusal(tmp_path / "two", listen=f"unix:{path}")
        assert said == f"ATTACHD_LISTEN: cannot listen on unix:{path}: address already in use"
        assert (await asyncio.to_thread(asked, path)).startswith(b"HTTP/1.1 200 ")


async def test_a_dead_socket_is_replaced(tmp_path: Path) -> None:
    """What a killed service left at the path is in nobody's way."""
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with site(tmp_path, listen=f"unix:{path}"):
        assert (await asyncio.to_thread(asked, path)).startswith(b"HTTP/1.1 200 ")
    assert not path.exists()


async def test_a_socket_is_for_its_owner_and_group(tmp_path: Path) -> None:
    """A proxy needs to be in the group; nobody else gets in."""
    path = tmp_path / "a.sock"
    async with site(tmp_path, listen=f"unix:{path}"):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660


async def test_a_file_at_the_path_of_a_socket_stays(tmp_path: Path) -> None:
    """Only a socket is ever replaced."""
    path = tmp_path / "a.sock"
    path.write_text("mine")
    await refusal(tmp_path, listen=f"unix:{path}")
    assert path.read_text() == "mine"


# --- a database that another process holds ----------------------------------------------------


async def test_a_lease_that_cannot_be_asked_for_is_no_held_one(here: Site) -> None:
    """A PATCH over a locked database is 503 `storage-unavailable`: nobody holds the upload. HEAD says the offset."""
    path = await here.create(10)
    here.service.leases._patience_seconds = 0.05
    with locked(here.service.settings.data / "attachd.db"):
        answer = await here.patch(path, 0, b"hello")
        assert (answer.status, answer.slug) == (503, "storage-unavailable")
        assert "Retry-After" in answer.headers
        assert (await here.ask("HEAD", path, TUS)).status in (200, 423)
