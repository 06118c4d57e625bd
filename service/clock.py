"""Time and chance as a port, so that the use-cases can be tested under a clock of the test's own."""

from __future__ import annotations

import os
import secrets
import time
from typing import Final, Protocol

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


#: two characters of base32 for each ten bits
_BASE32: Final = "abcdefghijklmnopqrstuvwxyz234567"
_PAIRS: Final = tuple(first + second for first in _BASE32 for second in _BASE32)


#: random numbers of 130 bits for the next ids; a call of the system's for each would cost more than all else here
_drawn: Final[list[int]] = []
_DRAWN_AT_ONCE: Final = 32
# a forked process must not give the same ids
os.register_at_fork(after_in_child=_drawn.clear)


def _base32_130() -> str:
    """26 lower-case base32 characters: 130 random bits."""
    if not _drawn:
        bits = secrets.randbits(130 * _DRAWN_AT_ONCE)
        _drawn.extend(bits >> 130 * at & (1 << 130) - 1 for at in range(_DRAWN_AT_ONCE))
    bits = _drawn.pop()
    return "".join([_PAIRS[bits >> shift & 1023] for shift in range(0, 130, 10)])


def new_upload_id() -> UploadId:
    return UploadId("u_" + _base32_130())


def new_file_id() -> FileId:
    return FileId("f_" + _base32_130())


def new_event_id() -> str:
    return "evt_" + _base32_130()


def new_question_id() -> str:
    return "hook_" + _base32_130()


def new_job_id() -> str:
    return "j_" + _base32_130()


def new_jti() -> str:
    """144 random bits, for a link."""
    return secrets.token_urlsafe(18)
