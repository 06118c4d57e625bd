"""What a start takes hold of before it touches any state, and how it says that it cannot.

A start that cannot have the data directory or an address (`listening`) ends with one line that
names the setting, and has changed nothing: a second service on the same directory by mistake would
let go of the first one's leases, and one on the same address would take its clients.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from service.keyset import KeySetError
from service.metadata.base import MetadataError
from service.storage.base import StorageError

LOCK_NAME: Final = "attachd.lock"
#: how long a service that starts beside another waits for that one's own start
_START_SECONDS: Final = 20.0
_AGAIN_SECONDS: Final = 0.05
#: names in a container's file system of the processor time it may use, in microseconds: so many in each so many
_CPU_MAX: Final = Path("/sys/fs/cgroup/cpu.max")


class CannotStart(Exception):
    """What a setting names is not to be had; one line for the operator."""


@contextlib.contextmanager
def naming(setting: str, what: object = "") -> Iterator[None]:
    """Trouble inside comes out as CannotStart, with the setting and what it says."""
    try:
        yield
    except (OSError, KeySetError, MetadataError, StorageError) as error:
        place = f"{what}: " if what else ""
        raise CannotStart(" ".join(f"{setting}: {place}{words(error)}".split())) from error


def words(error: Exception) -> str:
    """What an error says, without its number."""
    if isinstance(error, OSError) and error.strerror:
        # asyncio puts a sentence of its own around the system's
        number = error.errno if error.errno in errno.errorcode else None
        return (error.strerror if number is None else os.strerror(number)).lower()
    return str(error)


class DataDirectory:
    """The directory that a service runs on: its own, or also of the one whose place it takes.

    The kernel gives the lock back when the process ends, however it does (lesson L4).
    """

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._lock: int | None = None

    def take(self, *, beside: bool = False) -> bool:
        """Whether no other service uses the directory, which exists now. None can until `settle`. Blocks.

        Args:
            beside: another one may use it too; else that is an error.

        Raises:
            CannotStart: another one has it, or it cannot be used.
        """
        with naming("ATTACHD_DATA", self._path):
            # what is in it is nobody else's: keys, the state, the files
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self._path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
            if self._try(fcntl.LOCK_EX):
                return True
        if not beside:
            self.close()
            raise CannotStart(
                f"ATTACHD_DATA: {self._path}: another attachd runs on it; stop that one first, "
                "or take its place with --beside"
            )
        self._settle()
        return False

    def settle(self) -> None:
        """A service that comes to take this one's place may use the directory as well. Blocks."""
        with naming("ATTACHD_DATA", self._path):
            self._settle()

    def others(self) -> bool:
        """Whether another service uses the directory. Blocks."""
        with naming("ATTACHD_DATA", self._path):
            alone = self._try(fcntl.LOCK_EX)
            self._settle()
            return not alone

    def close(self) -> None:
        """It is nobody's, as far as this process is concerned."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _settle(self) -> None:
        """The lock is shared; another one's start, which has it to itself, is waited for."""
        deadline = time.monotonic() + _START_SECONDS
        while not self._try(fcntl.LOCK_SH):
            if time.monotonic() >= deadline:
                raise CannotStart(f"ATTACHD_DATA: {self._path}: another attachd has been starting on it for too long")
            time.sleep(_AGAIN_SECONDS)

    def _try(self, kind: int) -> bool:
        if self._lock is None:
            raise RuntimeError("the directory has not been taken")
        try:
            fcntl.flock(self._lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def processors() -> int:
    """How many this process may use: those it may run on, and no more than a container's quota."""
    count = len(os.sched_getaffinity(0))
    try:
        quota, period = _CPU_MAX.read_text().split()
        count = min(count, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        # no container, or one without a quota ("max")
        return count
    return count
