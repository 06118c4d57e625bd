"""The checksum registry, the block hasher and the manifest."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from service import hashing
from service.model import Block, FileId

# FIPS 180 (abc), RFC 1321 A.5, RFC 3720 B.4 and the CRC catalogue's check value, xxHash's own
# sanity checks for the empty input.
VECTORS = [
    ("sha1", b"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
    ("sha256", b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    (
        "sha512",
        b"abc",
        (
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
            "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f"
        ),
    ),
    ("md5", b"message digest", "f96b697d7cb7938d525a2f31aaf161d0"),
    ("crc32c", b"123456789", "e3069283"),
    ("crc32c", bytes(32), "8a9136aa"),
    ("crc32c", b"", "00000000"),
    ("xxh3-64", b"", "2d06800538d394c2"),
    ("xxh128", b"", "99aa06d3014798d86001c324468d497f"),
]

FILE_ID = FileId("f_" + "a" * 26)


def split(data: bytes, cuts: list[int]) -> list[memoryview]:
    """Data as runs that end at the cuts."""
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [memoryview(bytearray(data))[start:end] for start, end in itertools.pairwise(edges)]


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=5))
def test_several_checksums_at_once_are_what_each_is_alone(data: bytes, cuts: list[int]) -> None:
    """T-0A6: Every advertised algorithm gives over the same runs what it gives by itself over all bytes."""
    together = hashing.Checksums()
    for run in split(data, cuts):
        together.update(run)
    alone = {}
    for name in hashing.ALGORITHMS:
        computed = hashing.checksum(name)
        computed.update(memoryview(data))
        alone[name] = computed.digest()
    assert {name: together.digest(name) for name in hashing.ALGORITHMS} == alone


def test_only_the_checksums_that_were_asked_for_are_computed() -> None:
    """Where one algorithm is announced, another's digest is not to be had."""
    one = hashing.Checksums(["sha1"])
    one.update(memoryview(b"abc"))
    assert one.digest("sha1").hex() == "a9993e364706816aba3e25717850c26c9cd0d89d"
    with pytest.raises(KeyError):
        one.digest("md5")


def blocks_of(data: bytes, block_size: int, *, strong: bool = False) -> list[Block]:
    """The blocks of data, fed in one go."""
    hasher = hashing.BlockHasher(block_size, strong=strong)
    hasher.update(memoryview(data))
    last = hasher.finish()
    return hasher.take_finished() + ([last] if last else [])


@pytest.mark.parametrize(("name", "data", "expected"), VECTORS)
def test_t_0a5_every_algorithm_passes_its_published_vector(name: str, data: bytes, expected: str) -> None:
    """T-0A5: Every advertised algorithm gives the published digest, big-endian, of the listed length."""
    computed = hashing.checksum(name)
    computed.update(memoryview(data))

    assert computed.digest().hex() == expected
    assert len(computed.digest()) == hashing.ALGORITHMS[name].digest_length


def test_t_0a5_the_order_of_the_registry_is_the_advertised_one() -> None:
    """T-0A5: The seven names come in the advertised order, each with a vector above."""
    assert ",".join(hashing.ALGORITHMS) == "sha1,sha256,sha512,md5,crc32c,xxh3-64,xxh128"
    assert set(hashing.ALGORITHMS) == {name for name, _, _ in VECTORS}


@pytest.mark.parametrize("name", ["SHA1", "sha-1", "", "xxh64"])
def test_t_0a5_a_name_outside_the_registry_is_unknown(name: str) -> None:
    """T-0A5: Names are compared case-sensitively."""
    with pytest.raises(KeyError):
        hashing.checksum(name)


@pytest.mark.parametrize("name", list(hashing.ALGORITHMS))
@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=5))
def test_a_checksum_does_not_depend_on_how_the_body_was_split(name: str, data: bytes, cuts: list[int]) -> None:
    """The digest of a body is the same whole and in any runs, from a writable buffer too."""
    whole, runs = hashing.checksum(name), hashing.checksum(name)
    whole.update(memoryview(data))
    for run in split(data, cuts):
        runs.update(run)

    assert runs.digest() == whole.digest()


def test_crc32c_of_a_body_larger_than_its_slices_is_that_of_the_whole() -> None:
    """CRC-32C of several slices equals the same bytes fed one by one thousand at a time."""
    data = bytes(range(256)) * 700
    whole, runs = hashing.checksum("crc32c"), hashing.checksum("crc32c")
    whole.update(memoryview(data))
    for at in range(0, len(data), 1000):
        runs.update(memoryview(data)[at : at + 1000])

    assert whole.digest() == runs.digest()


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(0, 200), max_size=6), block_size=st.integers(1, 70))
def test_blocks_do_not_depend_on_how_the_bytes_were_split(data: bytes, cuts: list[int], block_size: int) -> None:
    """Block k is the digest of bytes [k * size, (k + 1) * size), whatever the runs."""
    hasher = hashing.BlockHasher(block_size, strong=True)
    found: list[Block] = []
    for run in split(data, cuts):
        hasher.update(run)
        found += hasher.take_finished()
    last = hasher.finish()

    expected = [
        Block(
            at // block_size,
            xxhash.xxh3_128_digest(data[at : at + block_size]),
            hashlib.sha256(data[at : at + block_size]).digest(),
        )
        for at in range(0, len(data), block_size)
    ]
    assert found + ([last] if last else []) == expected


@pytest.mark.parametrize(("size", "full", "partial"), [(0, 0, False), (7, 0, True), (8, 1, False), (9, 1, True)])
def test_a_block_is_finished_by_its_last_byte(size: int, full: int, partial: bool) -> None:
    """A block is finished exactly when it is full; only what is left over is the last, partial one."""
    hasher = hashing.BlockHasher(8, strong=False)
    hasher.update(memoryview(bytes(size)))

    assert [block.number for block in hasher.take_finished()] == list(range(full))
    assert (hasher.finish() is not None) is partial


def test_a_finished_block_is_taken_once() -> None:
    """A second `take_finished` gives only what became full since the first."""
    hasher = hashing.BlockHasher(4, strong=False)
    hasher.update(memoryview(b"abcdefgh"))
    hasher.take_finished()
    hasher.update(memoryview(b"ijkl"))

    assert [block.number for block in hasher.take_finished()] == [2]


def test_o7_blocks_hashed_after_a_restart_equal_those_hashed_in_one_go() -> None:
    """O7: A hasher that starts at block k, fed from that block's start, goes on where another stopped."""
    data = bytes(range(100))
    hasher = hashing.BlockHasher(16, strong=True, first_block=3)
    hasher.update(memoryview(data)[48:])
    last = hasher.finish()

    assert [*hasher.take_finished(), last] == blocks_of(data, 16, strong=True)[3:]


@pytest.mark.parametrize("first_block", [0, 3])
@pytest.mark.parametrize("strong", [False, True])
def test_a_tail_is_the_digest_of_the_unfinished_block(first_block: int, strong: bool) -> None:
    """It is told just where the run ends, within a block, and disturbs nothing; elsewhere there is none."""
    hasher = hashing.BlockHasher(8, strong=strong, first_block=first_block)
    start = 8 * first_block
    assert hasher.tail(start) is None
    hasher.update(memoryview(b"abcdefghij"))
    assert hasher.tail(start + 10) == xxhash.xxh3_128_digest(b"ij")
    assert [hasher.tail(start + at) for at in (0, 2, 8, 9, 11)] == [None] * 5
    hasher.update(memoryview(b"klmnop"))
    assert hasher.tail(start + 16) is None
    assert [block.xxh128 for block in hasher.take_finished()] == [
        xxhash.xxh3_128_digest(piece) for piece in (b"abcdefgh", b"ijklmnop")
    ]


def test_a_hasher_refuses_blocks_without_bytes() -> None:
    """A block size of zero is an error at once, not an endless loop."""
    with pytest.raises(ValueError, match="at least one byte"):
        hashing.BlockHasher(0, strong=False)


def test_the_root_is_built_as_the_contract_says() -> None:
    """The root is XXH3-128, and SHA-256 likewise, over prefix, size and every block digest in order."""
    data = b"0123456789abcdefXYZ"
    made = hashing.manifest(blocks_of(data, 8, strong=True), len(data), 8)

    pieces = [data[0:8], data[8:16], data[16:]]
    head = b"attachd1" + b"\0\0\0\0\0\0\0\x13"
    assert made.root == xxhash.xxh3_128_digest(head + b"".join(xxhash.xxh3_128_digest(piece) for piece in pieces))
    assert made.sha256_root == hashlib.sha256(head + b"".join(hashlib.sha256(p).digest() for p in pieces)).digest()


def test_a_root_stays_what_it_is() -> None:
    """A published root: changing the construction breaks this and needs a new prefix."""
    made = hashing.manifest(blocks_of(b"attachd", 4), 7, 4)

    assert made.root.hex() == "516ebd866699a42933a8fc347b2acca5"


def test_an_empty_file_has_no_blocks_and_a_root() -> None:
    """The manifest of no bytes lists no block; its root is over prefix and size alone."""
    made = hashing.manifest([], 0, 8)

    assert made.xxh128 == ()
    assert made.root == xxhash.xxh3_128_digest(b"attachd1" + bytes(8))


@pytest.mark.parametrize(("numbers", "size"), [([0, 1], 4), ([0], 9), ([1, 0], 9), ([0, 0], 9), ([], 1), ([0], 0)])
def test_a_manifest_refuses_blocks_that_are_not_the_files(numbers: list[int], size: int) -> None:
    """Missing, extra, repeated or disordered blocks make no manifest."""
    with pytest.raises(ValueError, match="has the blocks"):
        hashing.manifest([Block(number, bytes(16)) for number in numbers], size, 8)


def test_a_manifest_refuses_blocks_only_some_of_which_are_strong() -> None:
    """SHA-256 is for every block or for none."""
    with pytest.raises(ValueError, match="every block has a SHA-256"):
        hashing.manifest([Block(0, bytes(16), bytes(32)), Block(1, bytes(16))], 9, 8)


def json_of(data: bytes = b"0123456789", *, strong: bool = False) -> dict[str, Any]:
    """A manifest over the wire, blocks of 8 bytes."""
    return hashing.manifest_json(FILE_ID, hashing.manifest(blocks_of(data, 8, strong=strong), len(data), 8))


def test_the_json_has_the_fields_of_the_contract() -> None:
    """The manifest's JSON has exactly the contract's fields, in its order, sha256 only when there is one."""
    assert list(json_of()) == ["version", "file_id", "size", "block_size", "root", "blocks"]
    assert list(json_of()["blocks"]) == ["xxh128"]
    assert list(json_of(strong=True)["blocks"]) == ["xxh128", "sha256"]
    assert json_of()["root"] == {
        "algorithm": "xxh128",
        "digest": hashing.manifest(blocks_of(b"0123456789", 8), 10, 8).root.hex(),
    }


@given(data=st.binary(max_size=60), strong=st.booleans())
def test_a_manifest_survives_the_wire(data: bytes, strong: bool) -> None:
    """What a client parses is the manifest that was rendered."""
    made = hashing.manifest(blocks_of(data, 8, strong=strong), len(data), 8)

    assert hashing.verify_manifest(hashing.manifest_json(FILE_ID, made)) == made


def change(path: str, value: object) -> dict[str, Any]:
    """A strong manifest with one field replaced."""
    json = json_of(strong=True)
    *parents, name = path.split(".")
    place: Any = json
    for parent in parents:
        place = place[parent]
    place[name] = value
    return json


@pytest.mark.parametrize(
    ("json", "words"),
    [
        ([], "not a JSON object"),
        (change("version", 2), "version is 2"),
        (change("size", -1), "size is -1"),
        (change("size", True), "size is True"),
        (change("size", 1 << 64), "size is"),
        (change("size", "10"), "size is '10'"),
        (change("size", 11), "root does not belong"),
        (change("size", 17), "lists 2 blocks where 17 bytes have 3"),
        (change("block_size", 0), "block_size is 0"),
        (change("root", "ff"), "root is not a JSON object"),
        (change("root.algorithm", "md5"), "algorithm is 'md5'"),
        (change("root.digest", "00" * 16), "root does not belong"),
        (change("blocks", None), "list of blocks is not"),
        (change("blocks.xxh128", None), "no list of xxh128"),
        (change("blocks.xxh128", ["00" * 16] * 2), "root does not belong"),
        (change("blocks.xxh128", ["0 " * 16] * 2), "is not a xxh128 digest"),
        (change("blocks.xxh128", [7, 7]), "is not a xxh128 digest"),
        (change("blocks.sha256", ["00" * 32]), "lists 1 blocks"),
        (change("blocks.sha256", ["00" * 31] * 2), "is not a sha256 digest"),
    ],
)
def test_a_wrong_manifest_is_refused_in_words(json: object, words: str) -> None:
    """Each fault of a manifest is a ValueError that says which."""
    with pytest.raises(ValueError, match=words):
        hashing.verify_manifest(json)
