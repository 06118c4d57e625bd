"""Tests that run beside each other: who measures is alone, and nobody's port is another's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import alone
from tests.ports import END, FIRST, free_port

ROOT = Path(__file__).resolve().parents[2]
#: says that it is in the room, and leaves it when it is told to
OTHER = """
import sys
from pathlib import Path
from tests import alone
alone._GATE, alone._ROOM = Path(sys.argv[1]), Path(sys.argv[2])
print("begun", flush=True)
with alone.in_room(alone=sys.argv[3] == "alone"):
    print("inside", flush=True)
    sys.stdin.readline()
"""


class Rooms:
    """Other processes at a room of the test's own."""

    def __init__(self, folder: Path) -> None:
        self._places = [folder / "gate", folder / "room"]
        for place in self._places:
            place.touch()
        self.processes: list[subprocess.Popen[str]] = []

    def come(self, manner: str) -> subprocess.Popen[str]:
        """Another process comes to the gate."""
        process = subprocess.Popen(
            [sys.executable, "-c", OTHER, *map(str, self._places), manner],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.processes.append(process)
        assert said(process) == "begun"
        return process


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def leave(process: subprocess.Popen[str]) -> None:
    process.communicate("\n")


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[Rooms]:
    found = Rooms(tmp_path)
    yield found
    for process in found.processes:
        process.kill()
        process.communicate()


def waits(process: subprocess.Popen[str]) -> bool:
    """Whether the process waits for a lock, once it does."""
    while True:
        mine = [line.split() for line in Path("/proc/locks").read_text().splitlines() if f" {process.pid} " in line]
        if any("->" in fields for fields in mine):
            return True
        if process.poll() is not None:
            return False


def test_many_share_and_one_is_alone(rooms: Rooms) -> None:
    """Two share the room; one who wants to be alone waits for both, and whoever comes then waits for that one."""
    first, second = rooms.come("shared"), rooms.come("shared")
    assert (said(first), said(second)) == ("inside", "inside")
    one = rooms.come("alone")
    assert waits(one)
    late = rooms.come("shared")
    assert waits(late)
    leave(first)
    assert waits(one)
    leave(second)
    assert said(one) == "inside"
    assert waits(late)
    leave(one)
    assert said(late) == "inside"


def test_a_killed_process_leaves_the_room(rooms: Rooms) -> None:
    """No lock outlives its process."""
    one = rooms.come("alone")
    assert said(one) == "inside"
    other = rooms.come("alone")
    assert waits(other)
    one.kill()
    assert said(other) == "inside"


def test_no_port_is_given_twice() -> None:
    """What is given is none that the system takes for outgoing connections, and is not given again soon."""
    given = [free_port() for _ in range(500)]
    assert len(set(given)) == len(given)
    assert all(FIRST <= port < END for port in given)


def test_processes_of_a_run_have_ports_of_their_own() -> None:
    """Each process that runs tests has a piece of the range, and no two pieces overlap."""
    program = "from tests.ports import _PORTS; print(_PORTS.start, _PORTS.stop)"
    pieces = []
    for number in range(3):
        names = {"PYTEST_XDIST_WORKER": f"gw{number}", "PYTEST_XDIST_WORKER_COUNT": "3", "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=os.environ | names,
            capture_output=True,
            text=True,
            check=True,
        )
        pieces.append([int(word) for word in ran.stdout.split()])
    edges = [edge for piece in pieces for edge in piece]
    assert edges == sorted(edges)
    assert all(start < end for start, end in pieces)


def test_the_hook_is_in_use(request: pytest.FixtureRequest) -> None:
    """Every test of this run goes through the room."""
    assert request.config.pluginmanager.has_plugin("tests.alone")
    assert alone.pytest_runtest_protocol in [
        hook.function for hook in request.config.hook.pytest_runtest_protocol.get_hookimpls()
    ]
