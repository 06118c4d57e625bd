"""How a start says that it cannot, and what it finds out about the machine.

A start that cannot have the data directory (`directory`) or an address (`listening`) ends with one
line that names the setting, and has changed nothing: a second service on the same directory by
mistake would let go of the first one's leases, and one on the same address would take its clients.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from service.keyset import KeySetError
from service.metadata.base import MetadataError
from service.storage.base import StorageError

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
