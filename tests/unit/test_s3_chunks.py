"""Runs of bytes in pieces: what is gathered comes out, in order, however it is read."""

from __future__ import annotations

from base64 import b64encode
from functools import partial
from itertools import zip_longest

from hypothesis import given
from hypothesis import strategies as st

from service import hashing
from service.storage.s3.chunks import Chunks, Recycler, crc32c_of, digest_of, pieces_of

PIECES = st.lists(st.integers(0, 300_000), max_size=8)


def recycler(room: int = 2**24) -> Recycler:
    return Recycler(lambda: room)


def bytes_of(sizes: list[int]) -> list[bytes]:
    """Pieces of those sizes, each different."""
    return [bytes([number % 251 + 1]) * size for number, size in enumerate(sizes)]


@given(PIECES, PIECES)
def test_all_comes_out_in_order(before: list[int], after: list[int]) -> None:
    """What was put before and what was appended make one run, whose length is known."""
    first, then = bytes_of(before), bytes_of(after)
    run = Chunks(recycler())
    for piece in then:
        run.append(memoryview(piece))
    run.prepend(first)
    whole = b"".join(first + then)

    assert len(run) == len(whole)
    assert b"".join(pieces_of(run)) == whole


@given(PIECES, st.integers(0, 600_000))
def test_it_reads_as_a_file(sizes: list[int], position: int) -> None:
    """From any position all that follows is read, then nothing; and again from the start."""
    run = Chunks(recycler())
    for piece in bytes_of(sizes):
        run.append(memoryview(piece))
    whole = b"".join(bytes_of(sizes))
    for start in (min(position, len(whole)), 0):
        assert run.seek(start) == start
        assert b"".join(iter(run.read, b"")) == whole[start:]
        assert run.tell() == len(whole)


def computed(algorithm: str, data: bytes) -> bytes:
    """The digest of all of the data at once."""
    running = hashing.checksum(algorithm)
    running.update(memoryview(data))
    return running.digest()


@given(PIECES, PIECES, PIECES, st.booleans())
def test_copied_and_kept_pieces_are_one_run(
    before: list[int], copied: list[int], kept: list[int], checked: bool
) -> None:
    """In whatever order they came: bytes, digest and checksum are those of the whole, known as it came or not."""
    run = Chunks(recycler(), checked=checked)
    whole = b""
    for copy, keep in zip_longest(bytes_of(copied), bytes_of(kept)):
        if copy is not None:
            run.append(memoryview(copy))
        if keep is not None:
            run.keep(memoryview(keep), lambda: None)
        whole += (copy or b"") + (keep or b"")
    in_order = run.digest, run.crc32c
    assert in_order == (computed("xxh128", whole), computed("crc32c", whole) if checked else None)

    run.prepend(bytes_of(before))
    whole = b"".join(bytes_of(before)) + whole
    assert b"".join(pieces_of(run)) == b"".join(iter(run.read, b"")) == whole
    assert digest_of(run) == digest_of(whole) == computed("xxh128", whole)
    assert crc32c_of(run) == crc32c_of(whole) == b64encode(computed("crc32c", whole)).decode()


def test_what_is_kept_is_given_back_once_it_is_not_needed() -> None:
    """Nothing is given back while the run may be sent, and each piece once after that."""
    run = Chunks(recycler())
    back: list[int] = []
    for number in range(3):
        run.keep(memoryview(b"abc"), partial(back.append, number))
        run.append(memoryview(b"d"))
    assert b"".join(iter(run.read, b"")) == b"abcd" * 3
    assert back == []
    run.recycle()
    run.recycle()
    assert back == [0, 1, 2]


def test_copies_behind_a_kept_piece_fill_the_same_buffer() -> None:
    """A client whose buffers are kept now and then holds no more of the others than it needs."""
    run = Chunks(recycler())
    for _ in range(5):
        run.append(memoryview(b"a"))
        run.keep(memoryview(b"b"), lambda: None)
    assert len(run._buffers) == 1
    assert b"".join(pieces_of(run)) == b"ab" * 5


def test_the_end_can_be_sought() -> None:
    """Whoever measures a body by its end and comes back reads all of it."""
    run = Chunks(recycler())
    run.append(memoryview(b"abc"))

    assert (run.seek(0, 2), run.seek(-3, 1)) == (3, 0)
    assert bytes(run.read()) == b"abc"


def test_what_is_appended_is_a_copy() -> None:
    """Changing the buffer afterwards changes nothing."""
    data = bytearray(b"abc")
    run = Chunks(recycler())
    run.append(memoryview(data))
    data[:] = b"XYZ"

    assert b"".join(pieces_of(run)) == b"abc"


def test_buffers_are_used_again() -> None:
    """A run that is over gives its buffers to the next one."""
    shared = recycler()
    first = Chunks(shared)
    first.append(memoryview(bytes(2**20)))
    buffers = {id(buffer) for buffer in first._buffers}
    first.recycle()
    second = Chunks(shared)
    second.append(memoryview(bytes(2**20)))

    assert {id(buffer) for buffer in second._buffers} == buffers
    assert len(first) == 0


def test_no_more_is_kept_than_there_is_room_for() -> None:
    """Free buffers beyond the room are given up."""
    shared = recycler(room=2**19)
    run = Chunks(shared)
    run.append(memoryview(bytes(2**22)))
    run.recycle()

    assert sum(len(buffer) for buffers in shared._free.values() for buffer in buffers) <= 2**19
