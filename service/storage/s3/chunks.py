"""Bytes gathered piece by piece, and sent without ever being joined.

Buffers come in two sizes and are used again. A buffer that grew to a part by itself would be moved
in memory again and again, and leave holes in the heap that come to more than the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

#: the first buffer of a run: a slow client holds no more than it needs
_SMALL_BYTES: Final = 2**16
_LARGE_BYTES: Final = 2**19


class Recycler:
    """Buffers that are free again. Taken by several threads, given back by one.

    Args:
        room: bytes that all free ones together may have at this moment.
    """

    def __init__(self, room: Callable[[], int]) -> None:
        self._room = room
        self._free: Final[dict[int, list[bytearray]]] = {_SMALL_BYTES: [], _LARGE_BYTES: []}

    def take(self, size: int) -> bytearray:
        """A buffer of one of the two sizes, with any content."""
        try:
            return self._free[size].pop()
        except IndexError:
            return bytearray(size)

    def give(self, buffer: bytearray) -> None:
        """Nobody uses the buffer any more."""
        free = sum(size * len(buffers) for size, buffers in self._free.items())
        if free + len(buffer) <= self._room():
            self._free[len(buffer)].append(buffer)


class Chunks:
    """A run of bytes in pieces. Not for two threads at once.

    botocore sends it as a file: `read` hands out one piece after the other, of whatever size, which
    are written to the socket as they are.
    """

    def __init__(self, recycler: Recycler, before: Sequence[bytes | memoryview] = ()) -> None:
        """Args: before: what it begins with; not copied, so it must stay as it is."""
        self._recycler = recycler
        self._before: list[bytes | memoryview] = list(before)
        self._buffers: list[bytearray] = []
        #: bytes in the last buffer
        self._filled = 0
        self._size = sum(len(piece) for piece in self._before)
        self._at = 0

    def __len__(self) -> int:
        return self._size

    def append(self, data: memoryview) -> None:
        """A copy of data at the end."""
        while data:
            if not self._buffers or self._filled == len(self._buffers[-1]):
                self._buffers.append(self._recycler.take(_LARGE_BYTES if self._buffers else _SMALL_BYTES))
                self._filled = 0
            buffer = self._buffers[-1]
            size = min(len(data), len(buffer) - self._filled)
            buffer[self._filled : self._filled + size] = data[:size]
            self._filled += size
            self._size += size
            data = data[size:]

    def prepend(self, pieces: Sequence[bytes | memoryview]) -> None:
        """The pieces come first, in their order; not copied."""
        self._before[:0] = pieces
        self._size += sum(len(piece) for piece in pieces)

    def pieces(self) -> list[bytes | memoryview]:
        """All bytes in order."""
        views: list[bytes | memoryview] = [memoryview(buffer) for buffer in self._buffers]
        if views:
            views[-1] = memoryview(self._buffers[-1])[: self._filled]
        return [*self._before, *views]

    def recycle(self) -> None:
        """The bytes are not needed any more, and nobody reads them."""
        buffers, self._buffers = self._buffers, []
        self._before, self._size, self._filled = [], 0, 0
        for buffer in buffers:
            self._recycler.give(buffer)

    # --- as botocore's body -------------------------------------------------------------------

    def read(self, _size: int = -1, /) -> bytes | memoryview:
        """The rest of the piece at the position; empty at the end."""
        passed = 0
        for piece in self.pieces():
            if self._at < passed + len(piece):
                rest = memoryview(piece)[self._at - passed :]
                self._at = passed + len(piece)
                return rest
            passed += len(piece)
        return b""

    def tell(self) -> int:
        """The position."""
        return self._at

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """The position is so many bytes from the start (0), from where it is (1) or from the end (2)."""
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at


def pieces_of(data: bytes | Chunks) -> Sequence[bytes | memoryview]:
    """All bytes in order."""
    return data.pieces() if isinstance(data, Chunks) else [data]
