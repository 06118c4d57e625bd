"""Stores that operator commands are tried on: made in this process under any clock, looked at by commands.

A `Place` is a data directory, with or without a bucket, and the settings of a service on both.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import sqlite3
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog
from click.testing import CliRunner

from service.cli import cli
from tests.contract import disk
from tests.e2e.process import ServiceProcess
from tests.e2e.s3_service import on_bucket
from tests.stores.servers import Store
from tests.web.harness import Site, site
from tests.web.under_way import SteppedClock

T = TypeVar("T")

MIB = 2**20
#: what is part of SQLite's own upkeep, and of nobody's data
_SQLITES = ("attachd.db-wal", "attachd.db-shm")


@contextlib.contextmanager
def _logging_as_before() -> Iterator[None]:
    """What a command makes of logging is undone, and no module's logger remembers it."""
    root, before, configure = logging.getLogger(), structlog.get_config(), structlog.configure
    handlers, level = root.handlers[:], root.level

    def forgetful(**options: Any) -> None:
        configure(**options | {"cache_logger_on_first_use": False})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(structlog, "configure", forgetful)
        yield
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)


class Place(ABC):
    """`settings` are those of the environment, without the prefix, in small letters."""

    def __init__(self, directory: Path, settings: dict[str, str]) -> None:
        self.service = ServiceProcess(directory, **settings)

    @property
    def data(self) -> Path:
        return self.service.data

    def run(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """A command under the settings, in this process: a new one takes longer to start than most commands take."""
        environment: dict[str, str | None] = dict.fromkeys(name for name in os.environ if name.startswith("ATTACHD_"))
        environment |= self.service.environment | settings
        with _logging_as_before():
            result = CliRunner().invoke(cli, arguments, env=environment)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)

    def made(self, work: Callable[[Site], Awaitable[T]], *, ago: float = 0.0) -> T:
        """What the work comes to on a service in this process, whose clock is so many seconds late."""

        async def main() -> T:
            clock = SteppedClock(time.time() - ago)
            values: dict[str, Any] = {
                name.removeprefix("ATTACHD_").lower(): value
                for name, value in self.service.settings.items()
                if name.startswith("ATTACHD_")
            }
            async with site(self.data.parent, clock=clock, data=str(self.data), **values) as here:
                return await work(here)

        return asyncio.run(main())

    def snapshot(self) -> dict[str, Any]:
        """Everything there is, to the byte, but for SQLite's log and its index."""
        found: dict[str, Any] = {
            str(path.relative_to(self.data)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
            for path in sorted(self.data.rglob("*"))
            if path.name not in _SQLITES
        }
        return found

    def rows(self, query: str) -> list[Any]:
        """What the database answers."""
        with contextlib.closing(sqlite3.connect(f"file:{self.data / 'attachd.db'}?mode=ro", uri=True)) as database:
            return database.execute(query).fetchall()

    def change(self, statement: str) -> None:
        """The database is changed behind everybody's back."""
        with contextlib.closing(sqlite3.connect(self.data / "attachd.db")) as database:
            database.execute(statement)
            database.commit()

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The data of each event of the kind, oldest first."""
        told = self.rows("select type, data from events order by seq")
        return [json.loads(text) for type_, text in told if type_ == kind]

    @abstractmethod
    def age(self, seconds: float) -> None:
        """All that is held was last changed so much earlier."""

    @abstractmethod
    def held(self) -> set[str]:
        """What is held, each by the path or key it has."""

    @abstractmethod
    def lose(self, key: str) -> None:
        """The finished file of that key is gone."""

    @abstractmethod
    def replace(self, key: str, content: bytes) -> None:
        """The finished file of that key has other bytes."""

    @abstractmethod
    def content(self, key: str) -> bytes:
        """The bytes of the finished file."""


class DiskPlace(Place):
    """Files in the data directory."""

    def age(self, seconds: float) -> None:
        for folder in ("uploads", "files"):
            disk.age(self.data / folder, seconds)

    def held(self) -> set[str]:
        folders = ("uploads", "files")
        paths = (path for folder in folders for path in (self.data / folder).rglob("*") if path.is_file())
        return {str(path.relative_to(self.data)) for path in paths}

    def _path(self, key: str) -> Path:
        return self.data / "files" / key[2:4] / key

    def lose(self, key: str) -> None:
        self._path(key).unlink()

    def replace(self, key: str, content: bytes) -> None:
        self._path(key).write_bytes(content)

    def content(self, key: str) -> bytes:
        return self._path(key).read_bytes()


class BucketPlace(Place):
    """Files in a bucket of a real server."""

    def __init__(self, directory: Path, settings: dict[str, str], store: Store, bucket: str) -> None:
        super().__init__(directory, on_bucket(store, bucket) | settings)
        self._store = store
        self._bucket = bucket

    def snapshot(self) -> dict[str, Any]:
        objects = self._store.objects(self._bucket)
        bodies = {f"s3:{key}": hashlib.sha256(self._body(key)).hexdigest() for key in objects}
        return super().snapshot() | bodies | {"multiparts": sorted(self._store.multiparts(self._bucket))}

    def age(self, seconds: float) -> None:
        self._store.age(self._bucket, seconds)

    def held(self) -> set[str]:
        multiparts = {key for key, _ in self._store.multiparts(self._bucket)}
        return (set(self._store.objects(self._bucket)) | multiparts) - {"attachd-owner"}

    def _body(self, key: str) -> bytes:
        return self._store.client().get_object(Bucket=self._bucket, Key=key)["Body"].read()

    def lose(self, key: str) -> None:
        self._store.client().delete_object(Bucket=self._bucket, Key=key)

    def replace(self, key: str, content: bytes) -> None:
        self._store.client().put_object(Bucket=self._bucket, Key=key, Body=content)

    def content(self, key: str) -> bytes:
        return self._body(key)
