"""What this machine allows, held against what the settings may need: descriptors, memory, room in shared memory.

Each is a warning at most: the service runs all the same, until it needs what is not there. The
limits are those of the process that asks, so doctor is to be run as the service is: by its user, in
its container or unit.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Final

from service.metrics import WORKER_BYTES
from service.settings import Settings
from service.starting import processors
from service.storage.s3.trials import Check
from service.units import format_size
from service.workers.counting import SHARED_MEMORY

#: a transfer has a connection and a file
_DESCRIPTORS_EACH: Final = 2
#: of a worker: listeners, database, keys, log, threads, operations
_DESCRIPTORS_BESIDE: Final = 200
#: resident bytes of a worker that does nothing, its shared pages counted once too often
_WORKER_RESIDENT: Final = 75 * 2**20
#: where the kernel tells what a container may use: cgroup 2, cgroup 1
_MEMORY_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def descriptors(settings: Settings) -> Check:
    """Whether a worker may have as many transfers as the settings allow. `serve` raises the soft limit itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS_EACH * settings.max_transfers + _DESCRIPTORS_BESIDE
    if hard == resource.RLIM_INFINITY or hard >= wanted:
        shown = "any number" if hard == resource.RLIM_INFINITY else hard
        return Check("descriptors", True, f"{shown} for a worker, which may need {wanted}")
    found = f"{hard} for a worker, which may need {wanted} with ATTACHD_MAX_TRANSFERS={settings.max_transfers}"
    return Check("descriptors", True, found, f"allow {wanted} (`LimitNOFILE`, `ulimit -n`), or lower the setting")


def memory(settings: Settings) -> Check:
    """Whether all workers may fill their buffers at once."""
    workers, there = _workers(settings), _memory()
    wanted = workers * (settings.buffer_limit + _WORKER_RESIDENT)
    found = f"{format_size(there)}, of which {workers} workers may take {format_size(wanted)}"
    if wanted > there:
        return Check("memory", True, found, "lower ATTACHD_BUFFER_LIMIT or ATTACHD_WORKERS, or give more")
    return Check("memory", True, found)


def shared_memory(settings: Settings, where: Path = SHARED_MEMORY) -> Check:
    """Whether workers can count where no disk is asked. Raises OSError."""
    workers = _workers(settings)
    if workers == 1:
        return Check("shared memory", True, "one process needs none")
    wanted, advice = workers * WORKER_BYTES, f"give {where} more room (`--shm-size`); metrics are kept on disk else"
    if not where.is_dir() or not os.access(where, os.W_OK | os.X_OK):
        return Check("shared memory", True, f"{where} cannot be written", advice)
    usage = os.statvfs(where)
    free = usage.f_bavail * usage.f_frsize
    found = f"{format_size(free)} free in {where}, of which {workers} workers take {format_size(wanted)}"
    return Check("shared memory", True, found, "" if free >= wanted else advice)


def _workers(settings: Settings) -> int:
    return settings.workers or processors()


def _memory() -> int:
    """Bytes that this machine has, or its container may use."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in _MEMORY_LIMITS:
        try:
            there = min(there, int(path.read_text()))
        except (OSError, ValueError):
            # not there, or `max`
            continue
    return there
