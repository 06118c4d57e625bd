"""Hash states between requests: used only where they are provably right (invariant 9)."""

from __future__ import annotations

import pytest

from service import carrying
from service.carrying import Carried
from service.hashing import BlockHasher
from service.model import Part, Upload
from tests.contract.metadata_values import make_upload, part

BLOCK = 100


def hashed(size: int) -> BlockHasher:
    """The state after so many bytes from a block's start."""
    hasher = BlockHasher(BLOCK, strong=False)
    hasher.update(memoryview(bytes(size)))
    return hasher


def upload_at(offset: int) -> Upload:
    return make_upload(block_size=BLOCK, offset=offset)


def test_a_state_goes_on_where_it_was_left() -> None:
    """What is taken back gives the digest that the whole block has, and is given out once."""
    kept, upload, hasher = Carried(), upload_at(130), hashed(130)
    tail = hasher.tail(130)
    kept.keep(upload, hasher)
    taken = kept.take(upload, tail)
    assert taken is not None
    taken.update(memoryview(bytes(70)))
    assert taken.take_finished()[-1].xxh128 == hashed(200).take_finished()[-1].xxh128
    assert kept.take(upload, tail) is None


@pytest.mark.parametrize("tail", [None, b"another digest.."])
def test_a_state_that_is_not_the_committed_one_is_not_used(tail: bytes | None) -> None:
    """Where the record tells another digest, or none, the block is read back."""
    kept, upload = Carried(), upload_at(130)
    kept.keep(upload, hashed(130))
    assert kept.take(upload, tail) is None


def test_a_state_of_another_offset_is_not_used() -> None:
    """Bytes that were hashed and not committed, or committed by another process, count for nothing."""
    kept, upload, hasher = Carried(), upload_at(130), hashed(130)
    kept.keep(upload, hasher)
    assert kept.take(upload.with_(offset=140), hasher.tail(130)) is None
    kept.keep(upload.with_(offset=120), hashed(130))
    assert kept._kept == {}


def test_who_goes_on_takes_all_that_was_left_once() -> None:
    """What a whole request left is there for one that looks, and gone for the next once one has taken it."""
    kept, upload, ledger = Carried(), upload_at(130), (part(1, 0, 130),)
    kept.keep(upload, hashed(130), ledger)
    left = kept.left(upload.id)
    assert left is not None
    assert (left.upload, left.ledger) == (upload, ledger)
    assert kept.take_left(left)
    assert not kept.take_left(left)
    assert kept.left(upload.id) is None


@pytest.mark.parametrize("ledger", [None, tuple(part(n, n, n + 1) for n in range(9))], ids=["cut", "long"])
def test_what_was_cut_or_is_long_is_looked_at_first(ledger: tuple[Part, ...] | None) -> None:
    """Without a ledger, or with a long one, only the hash state is left."""
    kept, upload, hasher = Carried(), upload_at(130), hashed(130)
    kept.keep(upload, hasher, ledger)
    assert kept.left(upload.id) is None
    assert kept.take(upload, hasher.tail(130)) is hasher


def test_what_a_client_wrote_is_not_kept() -> None:
    """However long a client's words about an upload are, what is left of it is small."""
    long = {"metadata": "k" * 200_000, "filename": "f" * 9000, "media_type": "a/b", "concat": "partial"}
    kept, upload = Carried(), upload_at(130)
    kept.keep(upload.with_(**long), hashed(130), (part(1, 0, 130),))
    left = kept.left(upload.id)
    assert left is not None
    assert (left.upload.metadata, left.upload.filename, left.upload.media_type, left.upload.concat) == (None,) * 4
    assert left.upload == upload.with_(metadata=None, filename=None, media_type=None, concat=None)


def test_what_somebody_took_is_not_left() -> None:
    """Who goes the long way has the state; who looked before that goes the long way too."""
    kept, upload, hasher = Carried(), upload_at(130), hashed(130)
    kept.keep(upload, hasher, (part(1, 0, 130),))
    left = kept.left(upload.id)
    assert left is not None
    assert kept.take(upload, hasher.tail(130)) is hasher
    assert not kept.take_left(left)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest states go first."""
    monkeypatch.setattr(carrying, "_KEPT", 2)
    kept, uploads = Carried(), [upload_at(10) for _ in range(3)]
    for upload in uploads:
        kept.keep(upload, hashed(10))
    tail = hashed(10).tail(10)
    assert [kept.take(upload, tail) is not None for upload in uploads] == [False, True, True]
