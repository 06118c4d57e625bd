"""Which bytes go into which part, and which tail segments are merged. Pure.

A part is what a multipart upload is made of: equal ones, but for the last, because some stores
take nothing else, cut by offset and never by request. The part with index i holds the bytes
[i * size, (i + 1) * size) and has the part number i + 1, so that a repeated one replaces itself.
Whatever does not fill a part when a request ends is a chain of tail segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

#: S3: the least size of a part that is not the last, the most of any, and how many there may be
LEAST_PART_BYTES: Final = 5 * 2**20
MOST_PART_BYTES: Final = 5 * 2**30
MOST_PARTS: Final = 10_000

#: so many segments of about the same size become one
_FAN_IN: Final = 16
#: segments that make more than this share of a part are left for the part itself
_SHARE: Final = 16


def part_size(most_bytes: int, *, wanted: int, align: int) -> int:
    """Bytes of a part: as wanted, or larger where 10,000 of those would not do; a multiple of align.

    Args:
        most_bytes: the largest upload there may be.
        wanted: bytes; the setting.
        align: bytes; what follows its last multiple must be readable while the upload is not
            complete, and the parts of a multipart upload are not.
    """
    # one less, so that the last one may be followed by an empty one in the making
    least = max(wanted, LEAST_PART_BYTES, -(-most_bytes // (MOST_PARTS - 1)))
    return -(-least // align) * align


def merged_segments(sizes: Sequence[int], new: int, *, part: int) -> int:
    """How many of the last segments a new one should take in, so that it replaces them.

    Segments of about the same size are merged by sixteen: clients that send a few bytes at a time
    make chains of bounded length, each byte being written again a few times at most. Large ones
    stay, as their bytes are written once more with the part anyway (lesson O5).

    Args:
        sizes: bytes of the segments of a part so far, in order.
        new: bytes of the new one.
        part: bytes of a part.
    """
    taken, size = 0, new
    while True:
        run, total = 0, size
        for older in reversed(sizes[: len(sizes) - taken]):
            if _level(older) > _level(size):
                break
            run += 1
            total += older
        if run < _FAN_IN - 1 or total > part // _SHARE:
            return taken
        taken, size = taken + run, total


def _level(size: int) -> int:
    return (size.bit_length() - 1) // 4


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [start, end) of the source with that index."""

    source: int
    start: int
    end: int


def joined_parts(sources: Sequence[int], size: int) -> list[list[Piece]]:
    """What each part of the joined sources is made of, in order.

    Args:
        sources: bytes of each.
        size: bytes of a part.
    """
    parts: list[list[Piece]] = []
    room = 0
    for number, length in enumerate(sources):
        at = 0
        while at < length:
            if not room:
                parts.append([])
                room = size
            end = min(length, at + room)
            parts[-1].append(Piece(number, at, end))
            room -= end - at
            at = end
    return parts


def copyable(part: Sequence[Piece], sources: Sequence[int]) -> bool:
    """Whether the store can copy the part by itself: a range of one source that is larger than 5 MiB."""
    return len(part) == 1 and sources[part[0].source] > LEAST_PART_BYTES
