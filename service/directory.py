"""The directory that a service runs on: whose it is, and who else uses it.

All that is known comes from locks, which the kernel gives back when a process ends, however it
does (lesson L4). Every process of every service holds `attachd.lock`, and a start that finds nobody
holds it alone: so even workers whose supervisor was killed and that still drain are seen. And for
each service there is a file below `services`, which its first process keeps locked, and whose name
says how far it has come: a full disk keeps nobody from that. A lock is let go for a moment when its
kind changes, so that somebody is here is never concluded from `attachd.lock` alone.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, TypeAlias

from service.starting import CannotStart, naming

LOCK_NAME: Final = "attachd.lock"
SERVICES_NAME: Final = "services"
#: how long a service that starts beside another waits for that one's own start
_START_SECONDS: Final = 20.0
#: how long the processes of a killed one are waited for, before this one starts beside them
_ENDING_SECONDS: Final = 1.0
_AGAIN_SECONDS: Final = 0.05
#: how far a service has come
_Phase: TypeAlias = Literal["starting", "settled", "serving", "draining", "replaced"]


class DataDirectory:
    """The directory of one service: its own, or also of the one whose place it takes. Its methods block."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        self._services = self._path / SERVICES_NAME
        self._token = secrets.token_hex(8)
        self._lock: int | None = None
        self._own: int | None = None
        self._place = self._services / f".{self._token}"

    def take(self, *, beside: bool = False) -> bool:
        """Whether no other process uses the directory, which exists now. None can until `settle`.

        Args:
            beside: another service may use it too; else that is an error.

        Raises:
            CannotStart: another one has it, or it cannot be used.
        """
        try:
            with naming("ATTACHD_DATA", self._path):
                # what is in it is nobody else's: keys, the state, the files
                self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._services.mkdir(mode=0o700, exist_ok=True)
                self._lock = os.open(self._path / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
                self._enter()
                return self._take(beside=beside)
        except BaseException:
            self.close()
            raise

    def _take(self, *, beside: bool) -> bool:
        began = time.monotonic()
        while True:
            if _try(self.lock, fcntl.LOCK_EX):
                # another one that is still starting cannot have it any more, and says so
                others = [phase for phase in self._others() if phase != "starting"]
                if not others:
                    return True
            else:
                others = self._others()
            # one that has been replaced is no obstacle, also where its successor is gone by now
            if not beside and any(phase != "replaced" for phase in others):
                raise CannotStart(
                    f"ATTACHD_DATA: {self._path}: another attachd runs on it; stop that one first, "
                    "or take its place with --beside"
                )
            waited = time.monotonic() - began
            if (beside or waited >= _ENDING_SECONDS) and _try(self.lock, fcntl.LOCK_SH):
                if self._others():
                    return False
                # whoever had it a moment ago may have gone since
                if _try(self.lock, fcntl.LOCK_EX):
                    return True
                # else somebody without a word has it; the attempt has cost the lock (flock(2))
                if _try(self.lock, fcntl.LOCK_SH):
                    return False
            if waited >= _START_SECONDS:
                raise CannotStart(f"ATTACHD_DATA: {self._path}: another attachd has been starting on it for too long")
            time.sleep(_AGAIN_SECONDS)

    def settle(self) -> None:
        """A service that comes to take this one's place may use the directory as well."""
        with naming("ATTACHD_DATA", self._path):
            self._say("settled")
            # whoever has it for a moment finds out that somebody is here
            fcntl.flock(self.lock, fcntl.LOCK_SH)

    def serves(self) -> None:
        """From now on this service is one that new connections may be left to."""
        with naming("ATTACHD_DATA", self._path):
            self._say("serving")

    def drains(self) -> bool:
        """It is one no more. Whether there is another that is: also `False` where that cannot be told."""
        with suppress(OSError):
            self._say("draining")
            if "serving" in self._others():
                self._say("replaced")
                return True
        return False

    def others(self) -> bool:
        """Whether another service uses the directory: also `True` where that cannot be told."""
        with suppress(OSError):
            return bool(self._others())
        return True

    @property
    def lock(self) -> int:
        """A descriptor that every process of the service holds open as long as it uses the directory, once taken."""
        if self._lock is None:
            raise RuntimeError("the directory has not been taken")
        return self._lock

    def close(self) -> None:
        """It is nobody's, as far as this process is concerned."""
        if self._own is not None:
            with suppress(OSError):
                self._place.unlink()
            os.close(self._own)
            self._own = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _enter(self) -> None:
        # under a name that nobody looks at until it is locked
        self._own = os.open(self._place, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(self._own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._say("starting")

    def _say(self, phase: _Phase) -> None:
        if self._own is not None:
            self._place = self._place.rename(self._services / f"{self._token}.{phase}")

    def _others(self) -> list[str]:
        """What the other services say that live. The files of dead ones are removed. Raises OSError."""
        while True:
            names = [name for name in os.listdir(self._services) if not name.startswith((".", self._token))]
            # one that comes further meanwhile is looked for under its new name
            with suppress(FileNotFoundError):
                return [name.partition(".")[2] for name in names if _locked(self._services / name)]


def _locked(place: Path) -> bool:
    """Whether a process keeps the file, which else is removed. Raises OSError."""
    found = os.open(place, os.O_RDWR)
    try:
        # shared, so that two that look at once do not take each other for it
        if not _try(found, fcntl.LOCK_SH):
            return True
        place.unlink(missing_ok=True)
        return False
    finally:
        os.close(found)


def _try(lock: int, kind: int) -> bool:
    """Whether the lock is held now, in that way."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
