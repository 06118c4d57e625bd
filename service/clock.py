"""Time and chance as a port, so that the use-cases can be tested under a clock of the test's own."""

from __future__ import annotations

import base64
import secrets
import time
from typing import Protocol

from service.model import FileId, UploadId


class Clock(Protocol):
    """Where the use-cases get instants and new ids from."""

    def now(self) -> float:
        """Seconds since the epoch, UTC; for what is stored and shown."""
        ...

    def monotonic(self) -> float:
        """Seconds since some start; for durations and deadlines in one process."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def _base32_130() -> str:
    """26 lower-case base32 characters: 130 random bits."""
    return base64.b32encode(secrets.token_bytes(17)).decode("ascii").lower()[:26]


def new_upload_id() -> UploadId:
    return UploadId("u_" + _base32_130())


def new_file_id() -> FileId:
    return FileId("f_" + _base32_130())


def new_event_id() -> str:
    return "evt_" + _base32_130()


def new_job_id() -> str:
    return "j_" + _base32_130()


def new_jti() -> str:
    """144 random bits, for a link."""
    return secrets.token_urlsafe(18)
