"""What is held against what: attachd, a plain aiohttp service; attachd on a bucket, bare boto3.

The machine's limits are in `limits.py`, other servers in `peers.py`, and all of them in `everybody.py`.

A further side is a class with the members of `Side`, added to `everybody.SIDES`. It is started for one case
in a directory of its own, as processes whose leader leads a group, and speaks tus 1.0.0 as far as
the cases it takes part in need: creation, creation-with-upload, PATCH, HEAD, and a GET.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Protocol, Self
from urllib.parse import urlsplit

from tests.bench.client import Answer
from tests.bench.machine import group
from tests.e2e.process import ROOT, ServiceProcess
from tests.e2e.s3_service import on_bucket
from tests.ports import free_port
from tests.stores.servers import Store, find_versitygw, open_store

START_SECONDS: Final = 30.0


@dataclass(frozen=True)
class Does:
    """What a side does with its time, so that nobody compares unlike things unawares."""

    hashing: str
    durability: str
    authentication: str
    database: str
    logging: str
    processes: str

    def but(self, **members: str) -> Does:
        """The same, except for these."""
        return replace(self, **members)

    def __str__(self) -> str:
        return "; ".join(f"{name}: {value}" for name, value in asdict(self).items())


class Side(Protocol):
    """A server under measurement. As a context: it answers inside, and is gone outside."""

    #: the cases it can take part in
    CASES: frozenset[str]

    @classmethod
    def missing(cls) -> str:
        """Why it cannot be started here; empty if it can."""

    def __init__(self, directory: Path, case: str, durability: str) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    @property
    def does(self) -> Does: ...

    @property
    def address(self) -> tuple[str, int]: ...

    @property
    def files(self) -> Path:
        """The directory below which it keeps bytes, and nothing else."""

    @property
    def unfinished(self) -> Path:
        """The directory below which the bytes of an upload are before its end; it may be the same."""

    def pids(self) -> list[int]:
        """Every process of it that runs now."""

    def creations(self, count: int, size: int) -> list[str]:
        """As many request targets, each good for creating one upload of that size."""

    def download(self, location: str, last: Answer) -> str:
        """The request target of a finished file, given its upload's `Location` and the last answer."""


def target(url: str) -> str:
    """Path and query of a URL, or of a path."""
    parts = urlsplit(url)
    return parts.path + (f"?{parts.query}" if parts.query else "")


#: what every tus server can do, with bytes on a disk
ON_DISK: Final = frozenset(
    {"one", "chunks", "mib-chunks", "eight", "open", "small", "mib-files", "download", "readers", "head"}
)


class Attachd:
    """The service as a process, with its defaults except durability."""

    CASES = ON_DISK | {"sizes"}
    WORKERS = 1

    @classmethod
    def missing(cls) -> str:
        return ""

    def __init__(self, directory: Path, case: str, durability: str) -> None:
        self._service = ServiceProcess(
            directory, ATTACHD_DURABILITY=durability, ATTACHD_WORKERS=str(self.WORKERS), ATTACHD_MAX_SIZE="4GiB"
        )
        self._durability = durability

    def __enter__(self) -> Self:
        self._service.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._service.kill()

    @property
    def does(self) -> Does:
        return Does(
            hashing="XXH3-128 of each 8 MiB block",
            durability=synced(self._durability, "data, directories and database before the last answer"),
            authentication="an HS256 link for each upload and download, each verified",
            database="SQLite, every offset committed before it is answered",
            logging="JSON lines into a file",
            processes="one" if self.WORKERS == 1 else f"{self.WORKERS} workers and a supervisor",
        )

    @property
    def address(self) -> tuple[str, int]:
        return self._service.address

    @property
    def files(self) -> Path:
        return self._service.data / "files"

    @property
    def unfinished(self) -> Path:
        return self._service.data / "uploads"

    def pids(self) -> list[int]:
        return self._service.pids()

    def creations(self, count: int, size: int) -> list[str]:
        return [target(self._service.mint_upload(max_size=max(size, 1))) for _ in range(count)]

    def download(self, location: str, last: Answer) -> str:
        return target(self._service.mint_download(last.header("Attachd-File-Id")))


class AttachdTwo(Attachd):
    """The same with two workers."""

    CASES = frozenset({"eight", "small", "mib-files", "readers", "head"})
    WORKERS = 2


class Program(ABC):
    """A server that is some program."""

    CASES: frozenset[str]
    #: where it takes creations, and what that becomes in the address of a file
    CREATION = "/files"
    DOWNLOAD = "/d/"

    @classmethod
    def missing(cls) -> str:
        return ""

    def __init__(self, directory: Path, case: str, durability: str) -> None:
        self.files = directory / "files"
        self.durability = durability
        self.environment: dict[str, str] = {}
        self.port = free_port()
        self._log = directory / "log"
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """What starts it."""

    def __enter__(self) -> Self:
        self.files.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=ROOT, env=os.environ | self.environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            self._wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    @property
    def unfinished(self) -> Path:
        return self.files

    def pids(self) -> list[int]:
        assert self._process is not None
        return group(self._process.pid)

    def creations(self, count: int, size: int) -> list[str]:
        return [self.CREATION] * count

    def download(self, location: str, last: Answer) -> str:
        return target(location).replace("/files/", self.DOWNLOAD)

    def _wait_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError), socket.create_connection(self.address, 1):
                return
            time.sleep(0.02)
        raise AssertionError(f"{self.command()[0]} did not start\n{self._log.read_text(errors='replace')}")


class Module(Program):
    """A module of this package as a server: called with port, directory, durability and what else it needs."""

    NAME: str

    def __init__(self, directory: Path, case: str, durability: str) -> None:
        super().__init__(directory, case, durability)
        self.arguments: list[str] = []

    def command(self) -> list[str]:
        module = [sys.executable, "-m", f"tests.bench.{self.NAME}"]
        return [*module, str(self.port), str(self.files), self.durability, *self.arguments]


class Naive(Module):
    """A plain aiohttp handler: `naive.py`."""

    CASES = ON_DISK
    NAME = "naive"

    def __init__(self, directory: Path, case: str, durability: str) -> None:
        super().__init__(directory, case, durability)
        # Each where it is the faster one: aiohttp has no sendfile under uvloop.
        self.loop = "asyncio" if case in ("download", "readers") else "uvloop"
        self.arguments = [self.loop]

    @property
    def does(self) -> Does:
        return Does(
            hashing="XXH3-128 of the file",
            durability=synced(self.durability, "data before the last answer"),
            authentication="none",
            database="none, offsets in memory",
            logging="none",
            processes=f"one, {self.loop}'s loop",
        )


def store_missing() -> str:
    """Why nothing can be measured on a bucket here; empty if it can."""
    return "" if find_versitygw() else "there is no versitygw (ATTACHD_TEST_VERSITYGW, or on the PATH)"


class AttachdS3(Attachd):
    """The service on a bucket of a versitygw of its own, whose processor time is nobody's."""

    CASES = frozenset({"s3-put", "s3-chunks", "s3-get", "s3-slow-neighbours"})

    #: clients that send 1 KB/s each meanwhile
    NEIGHBOURS = 0

    def __init__(self, directory: Path, case: str, durability: str) -> None:
        super().__init__(directory, case, durability)
        self._directory = directory
        self._store: Store | None = None

    def __enter__(self) -> Self:
        self._store = open_store("versitygw", self._directory / "store")
        settings = on_bucket(self._store, self._store.make_bucket())
        # as they come, not as tests like them
        for name in ("ATTACHD_S3_PART_SIZE", "ATTACHD_BLOCK_SIZE"):
            del settings[name]
        self._service.settings |= settings
        try:
            return super().__enter__()
        except BaseException:
            self._store.close()
            raise

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        if self._store is not None:
            self._store.close()

    @property
    def does(self) -> Does:
        return super().does.but(
            hashing="XXH3-128 of each 8 MiB block and of each part, CRC-32C of each part",
            durability=f"the bucket's; {synced(self._durability, 'database before the last answer')}",
        )

    @property
    def files(self) -> Path:
        return self._directory / "store"


class AttachdS3Crowded(AttachdS3):
    """The same, while ten others send a kilobyte a second each."""

    CASES = frozenset({"s3-slow-neighbours"})
    NEIGHBOURS = 10


class Bare(Module):
    """boto3 and nothing else: `bare.py`. It is not asked over HTTP but told by `tell`."""

    CASES = frozenset({"s3-put", "s3-chunks", "s3-get"})
    NAME = "bare"

    def __init__(self, directory: Path, case: str, durability: str) -> None:
        super().__init__(directory, case, durability)
        self.files = directory / "store"
        self._store: Store | None = None

    def __enter__(self) -> Self:
        self._store = open_store("versitygw", self.files)
        self.environment = self._store.environment()
        self.arguments = [self._store.endpoint, self._store.region, self._store.make_bucket()]
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        if self._store is not None:
            self._store.close()

    @property
    def does(self) -> Does:
        return Does(
            hashing="CRC-32C of each part",
            durability="the bucket's",
            authentication="none",
            database="none",
            logging="none",
            processes="one, no server: files come from the page cache, and go nowhere",
        )

    def tell(self, words: str) -> None:
        """It has done so. Raises AssertionError: it has not."""
        with socket.create_connection(self.address) as connection:
            connection.sendall(f"{words}\n".encode())
            said = connection.makefile().readline()
        assert said == "done\n", f"{words}: {said or 'no answer'}"


def synced(durability: str, what: str) -> str:
    """What becomes of bytes, in words."""
    return "left to the kernel" if durability == "none" else f"{what}: synced"
