"""A test that measures something has the machine to itself, also where several processes run tests.

pytest-xdist knows groups of tests that share a process, but none that keeps the other processes
waiting. Here each test is in a room that many may share, and one marked `alone` has it for itself.
Whoever comes goes through a gate and keeps it shut while it waits for the room: so one that wants
to be alone gets its turn though there is always another one who would share.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

#: what is locked is the open file (flock(2)): no lock outlives its process, and nothing is left lying about
_GATE: Final = Path(__file__)
_ROOM: Final = Path(__file__).parent


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Around all of the test and its fixtures, and outside its time-out."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with in_room(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def in_room(*, alone: bool) -> Iterator[None]:
    """Nobody is in there beside one who is alone, in any process."""
    with _open(_ROOM) as room:
        with _open(_GATE) as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


@contextmanager
def _open(path: Path) -> Iterator[int]:
    opened = os.open(path, os.O_RDONLY)
    try:
        yield opened
    finally:
        os.close(opened)
