"""What is measured from outside: processor time, memory, and pages that cost what pages cost."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Final

STEP: Final = 1 << 20
#: a scratch file is larger than what will be written, so that its pages suffice
SCRATCH: Final = 1.25
#: of the best speed seen, from which pages count as warm
WARM: Final = 0.7
TRIES: Final = 4


def group(leader: int) -> list[int]:
    """The processes of a group that still run."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError):
            # After the command name, which may hold anything: state, parent, group.
            state, _, number = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            if state != "Z" and int(number) == leader:
                found.append(int(entry.name))
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of the processes, threads that ended included, to the nanosecond."""
    # The clock of another process, as clock_getcpuclockid(3) makes it: CPUCLOCK_SCHED, per process.
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def forget_peaks(pids: Iterable[int]) -> None:
    """The peak of each process is what it holds now."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pids: Iterable[int]) -> int:
    """The most that each process held since its peak was forgotten, summed."""
    peak = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                peak += int(line.split()[1]) * 1024
    return peak


def unread_bytes(port: int) -> int:
    """What has come for the server on a local port, and waits in its sockets to be read."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # Local address, state, and the two queues; that of a listening socket (0A) counts connections.
    return sum(int(row[4].partition(":")[2], 16) for row in rows if row[1].endswith(f":{port:04X}") and row[3] != "0A")


class Pages:
    """Free memory that the machine really has.

    A virtual machine hands free pages back to its host, and the next to touch them pays for getting
    them again: whoever comes first looks slow. So what is about to be written is written once
    before, by us, until it goes as fast as it ever did.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._best = 0.0

    def warm(self, size: int) -> bool:
        """Whether `size` bytes can be written at full speed now."""
        for _ in range(TRIES):
            first = not self._best
            speed = self._write(int(size * SCRATCH))
            warm = speed >= WARM * self._best
            self._best = max(self._best, speed)
            if warm and not first:
                return True
        return False

    def _write(self, size: int) -> float:
        """Bytes per second."""
        block = bytes(STEP)
        path = self.directory / "scratch"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            start = time.perf_counter()
            for at in range(0, size, STEP):
                os.write(fd, memoryview(block)[: min(STEP, size - at)])
            return size / (time.perf_counter() - start)
        finally:
            os.close(fd)
            path.unlink()


def describe(directory: Path) -> list[str]:
    """The machine and what else it does, in lines."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    names = ", ".join(f"{name} {version(name)}" for name in ("aiohttp", "uvloop", "xxhash"))
    lines = [
        f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, {_filesystem(directory)} for the files",
        f"Python {sys.version.split()[0]}, {names}",
        f"load average at the start: {load:.2f}",
    ]
    if load > 0.3:
        lines.append("NOISY: something else is running; the figures are worth little")
    return lines


def _filesystem(directory: Path) -> str:
    """The type of the file system below the directory: the longest mount point that holds it."""
    best, kind = "", "an unknown file system"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4]
        if directory.resolve().is_relative_to(point) and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind
