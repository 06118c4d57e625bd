"""Where the workers of a run count what `/metrics` sums.

They map files into their memory. A write to a mapped file kills its process where the disk is full,
and stops it where the disk hangs; so the files are in shared memory if that can be had, and all the
room they need is taken before a worker writes to them.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

from service import metrics

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - what is made in it has a name that nobody can foresee
#: below the data directory, where there is no shared memory
NAME: Final = "metrics"


def counting_in(data: Path, count: int, *, alone: bool) -> Path:
    """A new directory with room for so many workers. Blocks.

    Args:
        alone: nobody else uses the data directory, so what killed runs left is removed.

    Raises:
        OSError: there is no room.
    """
    below, prefix = data / NAME, shared_prefix(data)
    if alone:
        shutil.rmtree(below, ignore_errors=True)
        for left in SHARED_MEMORY.glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)
    try:
        return _make(SHARED_MEMORY, prefix, count)
    except OSError:
        below.mkdir(mode=0o700, exist_ok=True)
        return _make(below, "", count)


def shared_prefix(data: Path) -> str:
    """How the names of directories in shared memory begin that belong to the data directory. Raises OSError."""
    found = data.stat()
    return f"attachd-{found.st_dev:x}-{found.st_ino:x}-"


def _make(above: Path, prefix: str, count: int) -> Path:
    made = Path(tempfile.mkdtemp(prefix=prefix, dir=above))
    try:
        for worker in range(count):
            metrics.reserve(made, worker)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return made
