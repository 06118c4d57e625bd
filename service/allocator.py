"""The C library's allocator, told what kind of process this is.

Buffers of megabytes are taken in one thread and given back in another all the time. As glibc comes,
it keeps a heap for each thread and hands large ones back to the kernel at once, which then clears
the same pages again and again: a fifth of the CPU time that an upload to a bucket costs.
"""

from __future__ import annotations

import ctypes
from typing import Final

#: mallopt(3)
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_LARGEST_FROM_HEAP_BYTES: Final = 32 * 2**20
_KEPT_BYTES: Final = 64 * 2**20


def suit_large_buffers() -> None:
    """One heap, which large buffers come from and whose end is kept. Nothing happens without glibc."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, _LARGEST_FROM_HEAP_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
