"""Bytes gathered piece by piece, and sent without ever being joined.

A piece that comes in a buffer that may be kept stays there, from the socket of its client to that of
the store. Others are copied into buffers of two sizes, which are used again: one that grew to a part by
itself would be moved in memory again and again, and leave holes in the heap that come to more than the
parts. Digest and checksum are computed as the bytes come, while the processor has them in its cache.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Final

from service import hashing

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

    Args:
        checked: whether its CRC-32C will be wanted.
    """

    def __init__(self, recycler: Recycler, *, checked: bool = False) -> None:
        self._recycler = recycler
        self._pieces: list[bytes | memoryview] = []
        self._size = 0
        #: those that bytes were copied into, and which bytes of the last one are its last piece
        self._buffers: list[bytearray] = []
        self._from = 0
        self._filled = 0
        #: whether the last piece ends where the next byte is copied to
        self._open = False
        #: to be called when nobody reads the pieces that were kept
        self._kept: list[Callable[[], None]] = []
        #: whether all came at the end, so that what was computed as it came is true
        self._in_order = True
        self._digest = hashing.checksum("xxh128")
        self._crc = hashing.checksum("crc32c") if checked else None
        #: the position of whoever reads it as a file
        self._at = 0
        #: whether it has been read from
        self.begun = False

    def __len__(self) -> int:
        return self._size

    def append(self, data: memoryview) -> None:
        """A copy of data at the end."""
        rest = data
        while rest:
            if not self._buffers or self._filled == len(self._buffers[-1]):
                self._buffers.append(self._recycler.take(_LARGE_BYTES if self._buffers else _SMALL_BYTES))
                self._filled, self._open = 0, False
            buffer = self._buffers[-1]
            size = min(len(rest), len(buffer) - self._filled)
            buffer[self._filled : self._filled + size] = rest[:size]
            if not self._open:
                self._pieces.append(b"")
                self._from, self._open = self._filled, True
            self._filled += size
            self._pieces[-1] = memoryview(buffer)[self._from : self._filled]
            rest = rest[size:]
        self._see(data)

    def keep(self, data: memoryview, release: Callable[[], None]) -> None:
        """The data itself at the end: it stays as it is until `recycle` calls release."""
        self._pieces.append(data)
        self._kept.append(release)
        self._open = False
        self._see(data)

    def _see(self, data: memoryview) -> None:
        self._size += len(data)
        self._digest.update(data)
        if self._crc is not None:
            self._crc.update(data)

    def prepend(self, pieces: Sequence[bytes | memoryview]) -> None:
        """The pieces come first, in their order; not copied, so they must stay as they are."""
        size = sum(len(piece) for piece in pieces)
        if size:
            self._pieces[:0] = pieces
            self._size += size
            self._in_order = False

    def pieces(self) -> list[bytes | memoryview]:
        """All bytes in order."""
        return list(self._pieces)

    @property
    def digest(self) -> bytes | None:
        """XXH3-128 of all bytes, if it was computed as they came."""
        return self._digest.digest() if self._in_order else None

    @property
    def crc32c(self) -> bytes | None:
        """CRC-32C of all bytes, if it was computed as they came."""
        return self._crc.digest() if self._in_order and self._crc is not None else None

    def recycle(self) -> None:
        """The bytes are not needed any more, and nobody reads them. The run is never used again."""
        buffers, self._buffers = self._buffers, []
        kept, self._kept = self._kept, []
        self._pieces, self._size = [], 0
        for buffer in buffers:
            self._recycler.give(buffer)
        for release in kept:
            release()

    def abandon(self) -> None:
        """The bytes are not needed any more, though somebody may still look: no buffer is used again.

        The error that is the reason holds the run, in a circle that only the collector finds, and that
        does not see how much memory hangs on it.
        """
        self._buffers, self._kept = [], []
        self._pieces, self._size = [], 0

    # --- as botocore's body -------------------------------------------------------------------

    def read(self, _size: int = -1, /) -> bytes | memoryview:
        """The rest of the piece at the position; empty at the end."""
        self.begun = True
        passed = 0
        for piece in self._pieces:
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


def digest_of(data: bytes | Chunks) -> bytes:
    """XXH3-128, which the ledger keeps of every piece, so that damage at rest is seen when it is read back."""
    known = data.digest if isinstance(data, Chunks) else None
    return known or _computed("xxh128", data)


def crc32c_of(data: bytes | Chunks) -> str:
    """CRC-32C in base64, as S3 wants it."""
    known = data.crc32c if isinstance(data, Chunks) else None
    return b64encode(known or _computed("crc32c", data)).decode("ascii")


def _computed(algorithm: str, data: bytes | Chunks) -> bytes:
    running = hashing.checksum(algorithm)
    for piece in pieces_of(data):
        running.update(memoryview(piece))
    return running.digest()
