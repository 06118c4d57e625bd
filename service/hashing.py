"""Bytes in, digests out: the checksums a client may claim, and the block digests of a file.

Two families that never meet:

- a *checksum* is a client's claim about one request body (tus 1.0.0, Checksum). The registry
  `ALGORITHMS` is the one list of what is understood; discovery advertises it in its order.
- a *digest* is ours, over a fixed-size *block* counted from byte 0, whatever the sizes of the
  requests (contract, section 6). XXH3-128 finds damage and nothing more; SHA-256 per block is
  there for whoever needs an identity that an attacker cannot forge.

Digests belong to finished blocks. Whoever goes on in the middle of a block feeds it again from its
start, or has a state that the committed digest of the unfinished block proves right (invariant 9,
`carrying`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import google_crc32c
import xxhash

from service.model import Block, FileId, Manifest

#: what the root of every manifest begins with; a new construction gets a new word
ROOT_PREFIX: Final = b"attachd1"
ROOT_ALGORITHM: Final = "xxh128"
MANIFEST_VERSION: Final = 1


class Checksum(Protocol):
    """A hash being computed. `digest` may be asked at any time and disturbs nothing."""

    def update(self, data: memoryview, /) -> None: ...

    def digest(self) -> bytes: ...


class _Crc32c:
    """CRC-32C (RFC 9260, appendix A), digest in big-endian order."""

    #: google_crc32c takes `bytes` only and our buffers are not: a copy, but never a large one
    _SLICE: Final = 1 << 16

    def __init__(self) -> None:
        self._crc = 0

    def update(self, data: memoryview, /) -> None:
        for at in range(0, len(data), self._SLICE):
            self._crc = google_crc32c.extend(self._crc, bytes(data[at : at + self._SLICE]))

    def digest(self) -> bytes:
        return self._crc.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class Algorithm:
    """One row of the registry: the name on the wire, the digest's length in bytes, a constructor."""

    name: str
    digest_length: int
    make: Callable[[], Checksum]


#: in the order in which they are advertised; names are compared case-sensitively (T-0A5)
ALGORITHMS: Final[Mapping[str, Algorithm]] = {
    row.name: row
    for row in (
        # tus 1.0.0, Checksum: sha1 is a MUST. It guards against damage, not against attack.
        Algorithm("sha1", 20, partial(hashlib.sha1, usedforsecurity=False)),
        Algorithm("sha256", 32, hashlib.sha256),
        Algorithm("sha512", 64, hashlib.sha512),
        Algorithm("md5", 16, partial(hashlib.md5, usedforsecurity=False)),
        Algorithm("crc32c", 4, _Crc32c),
        # xxhash's own `digest` is the canonical form, big-endian
        Algorithm("xxh3-64", 8, xxhash.xxh3_64),
        Algorithm("xxh128", 16, xxhash.xxh3_128),
    )
}


def checksum(name: str) -> Checksum:
    """A fresh computation by the algorithm of that wire name. Raises KeyError: not in the registry."""
    return ALGORITHMS[name].make()


class Checksums:
    """Several algorithms over the same bytes: the one that was announced, or all where it is told after them."""

    def __init__(self, names: Iterable[str] = ALGORITHMS) -> None:
        self._running = {name: checksum(name) for name in names}

    def update(self, data: memoryview) -> None:
        """The next bytes."""
        for running in self._running.values():
            running.update(data)

    def digest(self, name: str) -> bytes:
        """By the algorithm of that wire name. Raises KeyError: it is not computed."""
        return self._running[name].digest()


class BlockHasher:
    """Turns a run of bytes that starts on a block boundary into the digests of its blocks.

    Not for two threads at once; one after the other is fine.

    Args:
        block_size: bytes, > 0.
        strong: SHA-256 of each block as well.
        first_block: number of the block that the first byte belongs to.
    """

    def __init__(self, block_size: int, *, strong: bool, first_block: int = 0) -> None:
        if block_size < 1:
            raise ValueError("a block has at least one byte")
        self._block_size = block_size
        self._strong = strong
        self._number = first_block
        self._finished: list[Block] = []
        self._start()

    def _start(self) -> None:
        self._filled = 0
        self._weak = xxhash.xxh3_128()
        self._sha256 = hashlib.sha256() if self._strong else None

    def _close(self) -> Block:
        block = Block(
            number=self._number,
            xxh128=self._weak.digest(),
            sha256=self._sha256.digest() if self._sha256 is not None else None,
        )
        self._number += 1
        self._start()
        return block

    def update(self, data: memoryview) -> None:
        """The next bytes of the run, any number of them."""
        at = 0
        while at < len(data):
            piece = data[at : at + self._block_size - self._filled]
            self._weak.update(piece)
            if self._sha256 is not None:
                self._sha256.update(piece)
            self._filled += len(piece)
            at += len(piece)
            if self._filled == self._block_size:
                self._finished.append(self._close())

    def tail(self, at: int) -> bytes | None:
        """XXH3-128 of the unfinished block so far, if the run's last byte is just before byte `at` of the upload.

        None: it is not, or no block is unfinished there.
        """
        return self._weak.digest() if self._filled and self.end == at else None

    @property
    def end(self) -> int:
        """The byte of the upload before which the run ends so far."""
        return self._number * self._block_size + self._filled

    def take_finished(self) -> list[Block]:
        """The blocks that became full since the last call, in order."""
        finished, self._finished = self._finished, []
        return finished

    def finish(self) -> Block | None:
        """The last, partly filled block of a file that ends here; None if it ends on a boundary."""
        return self._close() if self._filled else None


def _root(hasher: Checksum, size: int, digests: Sequence[bytes]) -> bytes:
    hasher.update(memoryview(ROOT_PREFIX + size.to_bytes(8, "big") + b"".join(digests)))
    return hasher.digest()


def block_count(size: int, block_size: int) -> int:
    """How many blocks a file has; none if it is empty."""
    return -(-size // block_size)


def manifest(blocks: Sequence[Block], size: int, block_size: int) -> Manifest:
    """The digests of a file of that size, with their root (contract, section 6).

    Raises:
        ValueError: permanent; these are not the blocks of such a file.
    """
    if [block.number for block in blocks] != list(range(block_count(size, block_size))):
        raise ValueError(f"a file of {size} bytes has the blocks 0 to {block_count(size, block_size)} exclusive")
    weak = tuple(block.xxh128 for block in blocks)
    strong = tuple(block.sha256 for block in blocks if block.sha256 is not None)
    if strong and len(strong) != len(weak):
        raise ValueError("either every block has a SHA-256 digest or none")
    return Manifest(
        size=size,
        block_size=block_size,
        root_algorithm=ROOT_ALGORITHM,
        root=_root(xxhash.xxh3_128(), size, weak),
        xxh128=weak,
        sha256=strong or None,
        sha256_root=_root(hashlib.sha256(), size, strong) if strong else None,
    )


def manifest_json(file_id: FileId, manifest: Manifest) -> dict[str, Any]:
    """The manifest as it goes over the wire (contract, section 6)."""
    blocks = {"xxh128": [digest.hex() for digest in manifest.xxh128]}
    if manifest.sha256 is not None:
        blocks["sha256"] = [digest.hex() for digest in manifest.sha256]
    return {
        "version": MANIFEST_VERSION,
        "file_id": file_id,
        "size": manifest.size,
        "block_size": manifest.block_size,
        "root": {"algorithm": manifest.root_algorithm, "digest": manifest.root.hex()},
        "blocks": blocks,
    }


_HEX: Final = re.compile(r"(?:[0-9a-f]{2})+")


def verify_manifest(json: object) -> Manifest:
    """A manifest from parsed JSON, whose root belongs to its blocks.

    That the blocks belong to the bytes is for the caller to check, block by block.

    Raises:
        ValueError: permanent; the words say what is wrong with it.
    """
    fields = _object(json, "the manifest")
    if fields.get("version") != MANIFEST_VERSION:
        raise ValueError(f"the manifest's version is {fields.get('version')!r}, understood is {MANIFEST_VERSION}")
    size = _count(fields, "size", least=0)
    block_size = _count(fields, "block_size", least=1)
    root = _object(fields.get("root"), "the manifest's root")
    if root.get("algorithm") != ROOT_ALGORITHM:
        raise ValueError(f"the root's algorithm is {root.get('algorithm')!r}, understood is {ROOT_ALGORITHM}")
    digests = _object(fields.get("blocks"), "the manifest's list of blocks")
    weak = _digests(digests.get("xxh128"), "xxh128")
    strong = _digests(digests["sha256"], "sha256") if "sha256" in digests else None
    for found in (weak, strong):
        if found is not None and len(found) != block_count(size, block_size):
            raise ValueError(
                f"the manifest lists {len(found)} blocks where {size} bytes have {block_count(size, block_size)}"
            )
    made = manifest(
        [Block(number, digest, strong[number] if strong else None) for number, digest in enumerate(weak)],
        size,
        block_size,
    )
    if root.get("digest") != made.root.hex():
        raise ValueError("the manifest's root does not belong to its blocks")
    return made


def _object(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is not a JSON object")
    return value


def _count(fields: Mapping[str, object], name: str, *, least: int) -> int:
    value = fields.get(name)
    # true is an int to Python, and a size has to fit the eight bytes of the root
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 63:
        raise ValueError(f"the manifest's {name} is {value!r}, expected a whole number of {least} or more")
    return value


def _digests(value: object, name: str) -> tuple[bytes, ...]:
    length = ALGORITHMS[name].digest_length
    if not isinstance(value, list):
        raise ValueError(f"the manifest has no list of {name} digests")
    for digest in value:
        if not isinstance(digest, str) or len(digest) != 2 * length or not _HEX.fullmatch(digest):
            raise ValueError(f"{digest!r} is not a {name} digest of {length} bytes in lower-case hex")
    return tuple(bytes.fromhex(digest) for digest in value)
