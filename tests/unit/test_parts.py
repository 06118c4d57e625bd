"""The plan of parts, pure."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.storage import parts

MIB = 2**20
GIB = 2**30


@pytest.mark.parametrize(
    ("most", "wanted", "align", "size"),
    [
        (4 * GIB, 8 * MIB, 8 * MIB, 8 * MIB),
        (4 * GIB, 8 * MIB, 64 * 2**10, 8 * MIB),
        (4 * GIB, 8 * MIB, 3 * MIB, 9 * MIB),
        (4 * GIB, 1, 1, 5 * MIB),
        (79_992 * MIB, 8 * MIB, 8 * MIB, 8 * MIB),
        (79_992 * MIB + 1, 8 * MIB, 8 * MIB, 16 * MIB),
        (5 * 2**40, 8 * MIB, 8 * MIB, 528 * MIB),
    ],
)
def test_o4_the_size_of_a_part(most: int, wanted: int, align: int, size: int) -> None:
    """O4: A part is as large as wanted, larger where 9,999 would not do, and whole blocks."""
    assert parts.part_size(most, wanted=wanted, align=align) == size


@given(st.integers(0, 5 * 2**40), st.integers(1, 64 * MIB), st.integers(1, 64 * MIB))
def test_o4_fewer_than_ten_thousand_parts_are_enough(most: int, wanted: int, align: int) -> None:
    """O4: The largest upload fills 9,999 parts at most, so that one more can begin; any store takes their size."""
    size = parts.part_size(most, wanted=wanted, align=align)

    assert size * (parts.MOST_PARTS - 1) >= most
    assert size >= parts.LEAST_PART_BYTES
    assert size % align == 0


@pytest.mark.parametrize("chunk", [1, 100, 1024, 20_000, 65_536, 262_144, MIB, 5 * MIB])
def test_o5_a_chain_of_segments_stays_short_and_cheap(chunk: int) -> None:
    """O5: Requests of one size make a chain of bounded length, and write each byte few times."""
    part = 8 * MIB
    sizes: list[int] = []
    written = total = 0
    while total + chunk < min(part, 20_000 * chunk):
        taken = parts.merged_segments(sizes, chunk, part=part)
        merged = sum(sizes[len(sizes) - taken :]) + chunk
        sizes[len(sizes) - taken :] = [merged]
        written += merged
        total += chunk

    assert sum(sizes) == total
    assert len(sizes) <= 160
    assert written <= (1 if chunk >= 65_536 else 5) * total


def test_o5_segments_of_mixed_sizes_make_a_bounded_chain() -> None:
    """O5: So do requests of sizes that vary widely."""
    chance = random.Random(5)
    sizes: list[int] = []
    total = 0
    while total < 8 * MIB:
        new = int(2 ** chance.uniform(0, 18))
        taken = parts.merged_segments(sizes, new, part=8 * MIB)
        sizes[len(sizes) - taken :] = [sum(sizes[len(sizes) - taken :]) + new]
        total += new

    assert sum(sizes) == total
    assert len(sizes) <= 300


@given(st.lists(st.integers(0, 40 * MIB), max_size=6), st.sampled_from([5 * MIB, 8 * MIB]))
def test_c5_joined_parts_hold_every_byte_once_in_order(sources: list[int], size: int) -> None:
    """C5: The plan of a concatenation names every byte of the sources once, in order, in equal parts."""
    plan = parts.joined_parts(sources, size)

    pieces = [piece for part in plan for piece in part]
    assert sum(piece.end - piece.start for piece in pieces) == sum(sources)
    reached = dict.fromkeys(range(len(sources)), 0)
    for piece in pieces:
        assert piece.start == reached[piece.source] < piece.end
        reached[piece.source] = piece.end
    assert [piece.source for piece in pieces] == sorted(piece.source for piece in pieces)
    assert all(sum(piece.end - piece.start for piece in part) == size for part in plan[:-1])


def test_c5_what_the_store_copies() -> None:
    """C5: A part is copied by the store if it lies in one source that is larger than 5 MiB."""
    sources = [12 * MIB, 5 * MIB, 40 * MIB]
    plan = parts.joined_parts(sources, 8 * MIB)

    assert [parts.copyable(part, sources) for part in plan] == [True, False, False, True, True, True, True, True]
