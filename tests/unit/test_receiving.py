"""How bodies become committed bytes over storage that keeps pieces, joins them late, and fails when told to."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from service import hashing
from service.carrying import Carried
from service.hashing import ALGORITHMS
from service.metadata.base import Advance, Lease, MetadataStore
from service.metadata.migrate import migrate
from service.metadata.sql import SqlMetadata
from service.metrics import Metrics
from service.model import Part, State, Upload
from service.protocol.decide import Intake
from service.protocol.intents import ChecksumClaim, Ending, Policy
from service.receiving import NO_CLAIMS, Claims, Received, Receiver
from service.sniffing import SNIFF_BYTES
from service.storage.base import (
    Appender,
    Keep,
    Observer,
    Receipt,
    Storage,
    StorageError,
    StorageFull,
    StorageUnavailable,
)
from tests.contract.metadata_values import DAY, NOW, leased

POLICY = Policy(None, 100, strong_hash=False, idle_seconds=DAY, life_seconds=7 * DAY, tombstone_seconds=DAY)
#: so many pieces become one, once more bytes come
JOINED = 4


class Clock:
    """Each look is `step` seconds later."""

    def __init__(self, step: float) -> None:
        self._step = step
        self._at = 0.0

    def now(self) -> float:
        return NOW

    def monotonic(self) -> float:
        self._at += self._step
        return self._at


@dataclass
class Content:
    """A body that brings these pieces, and ends so."""

    pieces: Sequence[bytes]
    ends: Ending = Ending.WHOLE
    trailers: dict[str, str] = field(default_factory=dict)
    received: int = 0
    waited: bool = False
    _next: int = 0

    async def read(self) -> memoryview | None:
        if self._next == len(self.pieces):
            return None
        self._next += 1
        return memoryview(self.pieces[self._next - 1])

    def keep(self) -> Callable[[], None]:
        return lambda: None

    async def whole(self) -> memoryview | None:
        return None

    @property
    def over(self) -> bool:
        return self._next == len(self.pieces)

    @property
    def ending(self) -> Ending:
        return self.ends

    def stop(self, ending: Ending) -> None:
        self.ends = ending

    def silent_seconds(self) -> float:
        return 0.0

    def trailer(self, name: str) -> str | None:
        return self.trailers.get(name)

    @property
    def all(self) -> bytes:
        return b"".join(self.pieces)


@dataclass
class Shelf:
    """Storage in memory."""

    objects: dict[str, bytes] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    #: what the next calls raise
    on_drop: list[StorageError] = field(default_factory=list)
    on_flush: list[StorageError] = field(default_factory=list)
    #: pieces that are still on their way when somebody asks what is held
    behind: int = 0
    #: how often bytes were read back
    reads: int = 0
    #: of each write, whether its buffer could be kept
    kept: list[bool] = field(default_factory=list)

    async def read_upload(self, ledger: Sequence[Part], start: int, end: int) -> AsyncIterator[bytes]:
        self.reads += 1
        yield self.read(ledger)[start:end]

    @asynccontextmanager
    async def append(
        self, upload_id: str, ledger: Sequence[Part], *, epoch: int, align: int, observe: Observer | None, **others: Any
    ) -> AsyncIterator[Appender]:
        await others["fence"]()
        yield ShelfAppender(self, list(ledger), epoch, observe, others["keep"])

    async def drop(self, upload_id: str, keys: Sequence[str]) -> None:
        if self.on_drop:
            raise self.on_drop.pop()
        for key in keys:
            del self.objects[key]
            self.dropped.append(key)

    def put(self, data: bytes) -> str:
        """The key of a new object."""
        key = f"k{len(self.objects) + len(self.dropped)}"
        self.objects[key] = data
        return key

    def read(self, ledger: Sequence[Part]) -> bytes:
        """What the ledger reads; fails the test if it names what was dropped."""
        return b"".join(self.objects[part.key] for part in ledger)


class ShelfAppender:
    """Its receipts tell everything since the append began."""

    def __init__(self, shelf: Shelf, ledger: list[Part], epoch: int, observe: Observer | None, keep: Keep) -> None:
        self._shelf = shelf
        self._keep = keep
        self._parts = ledger
        self._epoch = epoch
        self._observe = observe
        self._replaced: list[str] = []
        self._joined = 0

    async def write(self, data: memoryview, *, last: bool = False) -> None:
        if self._observe is not None:
            self._observe(data)
        self._shelf.kept.append(self._keep() is not None)
        if len(self._parts) - self._joined == JOINED:
            self._join()
        start = self._parts[-1].end if self._parts else 0
        key = self._shelf.put(bytes(data))
        self._parts.append(Part(len(self._parts) + 1, start, start + len(data), key, epoch=self._epoch))

    def _join(self) -> None:
        pieces = self._parts[self._joined :]
        whole = replace(pieces[0], end=pieces[-1].end, key=self._shelf.put(self._shelf.read(pieces)))
        self._parts[self._joined :] = [whole]
        self._replaced += [piece.key for piece in pieces]
        self._joined += 1

    async def held(self) -> Receipt:
        return self._receipt(len(self._parts) - self._shelf.behind)

    async def flush(self, *, last: bool) -> Receipt:
        if self._shelf.on_flush:
            raise self._shelf.on_flush.pop()
        return self._receipt(len(self._parts))

    def _receipt(self, count: int) -> Receipt:
        parts = tuple(self._parts[: max(count, 0)])
        return Receipt(parts[-1].end if parts else 0, parts, tuple(self._replaced))


class Recorded:
    """A metadata store, with the steps that it took."""

    def __init__(self, inner: MetadataStore) -> None:
        self._inner = inner
        self.steps: list[Advance] = []
        #: whether each was asked to survive a crash of the machine
        self.durable: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def advance(self, *args: Any, step: Advance, durable: bool = False, **options: Any) -> Upload:
        moved = await self._inner.advance(*args, step=step, durable=durable, **options)
        self.steps.append(step)
        self.durable.append(durable)
        return moved


@dataclass
class Bench:
    """One upload, with what its bodies go through."""

    metadata: Recorded
    shelf: Shelf
    upload: Upload
    lease: Lease

    async def receive(
        self, body: Content, claims: Claims = NO_CLAIMS, *, step: float = 1.0, whole: bool | None = None
    ) -> Received:
        """What became of the body; a commit for each piece if the clock's step is a second."""
        checked = claims is not NO_CLAIMS if whole is None else whole
        intake = Intake(self.upload.length or 0, self.upload.length, whole=checked)
        receiver = Receiver(
            cast("MetadataStore", self.metadata),
            cast("Storage", self.shelf),
            POLICY,
            Clock(step),
            Metrics("1"),
            lambda _: None,
            Carried(),
        )
        received = await receiver.receive(self.upload, self.lease, intake, body, claims)
        self.upload = received.upload
        if received.released:
            self.lease, _ = await self.metadata.acquire_lease(self.upload.id, self.lease.owner, now=0, until=1e12)
        return received

    async def readable(self) -> bytes:
        """What the committed ledger reads."""
        return self.shelf.read(await self.metadata.ledger(self.upload.id))


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "metadata.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
async def bench(migrated: Path, tmp_path: Path) -> AsyncIterator[Bench]:
    path = await asyncio.to_thread(shutil.copy, migrated, tmp_path / "metadata.db")
    store = SqlMetadata(f"sqlite:///{path}", durability="none")
    await store.open()
    upload, lease = await leased(store, length=100_000)
    yield Bench(Recorded(store), Shelf(), upload, lease)
    await store.close()


def pieces(count: int) -> list[bytes]:
    """All different."""
    return [bytes([number]) * (number + 1) for number in range(count)]


# the ledger


@pytest.mark.parametrize("first", range(7))
@pytest.mark.parametrize("second", range(7))
async def test_the_ledger_reads_what_was_acknowledged_however_pieces_are_joined(
    bench: Bench, first: int, second: int
) -> None:
    """After two cut bodies the ledger reads every byte up to the offset, though entries were replaced on the way."""
    bodies = Content(pieces(first), Ending.CUT), Content(pieces(second), Ending.CUT)
    for body in bodies:
        await bench.receive(body)
    sent = bodies[0].all + bodies[1].all
    assert bench.upload.offset == len(sent)
    assert await bench.readable() == sent


async def test_a_commit_writes_only_what_changed(bench: Bench) -> None:
    """A receipt that tells all parts of a long request again puts each into the ledger once."""
    await bench.receive(Content(pieces(JOINED), Ending.CUT))
    assert [[part.number for part in step.parts] for step in bench.metadata.steps] == [[1], [2], [3], [4]]


async def test_entries_that_are_replaced_by_one_that_ends_where_they_did_are_written(bench: Bench) -> None:
    """What is joined after it was committed is committed again, before what it was made of is dropped."""
    await bench.receive(Content(pieces(JOINED + 1), Ending.CUT))
    assert [part.number for part in await bench.metadata.ledger(bench.upload.id)] == [1, 2]
    assert len(bench.shelf.dropped) == JOINED


# what is superfluous


async def test_each_key_is_dropped_once(bench: Bench) -> None:
    """A receipt that names what earlier ones named does not make it go twice."""
    await bench.receive(Content(pieces(5 * JOINED), Ending.CUT))
    assert bench.shelf.dropped
    assert len(bench.shelf.dropped) == len(set(bench.shelf.dropped))


async def test_a_drop_that_fails_fails_no_request(bench: Bench) -> None:
    """Storage that cannot remove what is superfluous is logged, and the request goes on."""
    bench.shelf.on_drop = [StorageUnavailable("away")] * 100
    body = Content(pieces(JOINED + 3))
    with capture_logs() as logs:
        received = await bench.receive(body)
    assert (received.problem, received.upload.offset) == (None, len(body.all))
    assert await bench.readable() == body.all
    assert {(record["event"], record["log_level"]) for record in logs} == {("drop_postponed", "warning")}


async def test_a_drop_that_failed_is_made_with_the_next_commit(bench: Bench) -> None:
    """What could not be removed goes as soon as it can, while the request lasts."""
    bench.shelf.on_drop = [StorageUnavailable("away")]
    await bench.receive(Content(pieces(JOINED + 3)))
    assert len(bench.shelf.dropped) == JOINED


async def test_o2_a_commit_is_synced_where_something_goes_after_it(bench: Bench) -> None:
    """O2: A step after which keys are dropped survives a crash of the machine; the others cost no sync."""
    await bench.receive(Content(pieces(JOINED + 3), Ending.CUT))
    assert bench.shelf.dropped
    assert bench.metadata.durable == [False] * JOINED + [True, False, False]


@pytest.mark.parametrize("resumed", [True, False])
async def test_c1_the_last_commit_of_a_resumed_upload_is_synced(bench: Bench, *, resumed: bool) -> None:
    """C1: Completion uses up what the ledger names; one that nobody was told of may be forgotten as a whole."""
    if resumed:
        await bench.receive(Content([b"a"], Ending.CUT))
    await bench.receive(Content([b"b" * (100_000 - bench.upload.offset)]))
    assert bench.metadata.steps[-1].state is State.FINISHING
    assert bench.metadata.durable[-1] is resumed


# storage that fails at the end


async def test_a_piece_that_is_cut_is_not_kept(bench: Bench) -> None:
    """Where a body passes its limit the buffer is larger than what counts of it: storage has to copy that."""
    length = bench.upload.length
    assert length is not None
    received = await bench.receive(Content([bytes(length - 1), b"12345"]))
    assert received.upload.offset == length
    assert bench.shelf.kept == [True, False]


@pytest.mark.parametrize("error", [StorageFull("full"), StorageUnavailable("away")])
async def test_a_flush_that_fails_keeps_what_is_held(bench: Bench, error: StorageError) -> None:
    """What storage holds when the last step fails is committed, and the client is told from where to go on."""
    bench.shelf.behind, bench.shelf.on_flush = 1, [error]
    body = Content(pieces(3))
    received = await bench.receive(body, step=0.0)
    kept = b"".join(body.pieces[:2])
    assert received.problem is not None
    assert received.problem.slug in ("storage-full", "storage-unavailable")
    assert dict(received.problem.headers)["Upload-Offset"] == str(len(kept)) == str(received.upload.offset)
    assert await bench.readable() == kept


async def test_a_flush_that_fails_keeps_nothing_of_a_body_with_a_checksum(bench: Bench) -> None:
    """T-0A4: A body that counts only when whole does not count in part because storage failed."""
    bench.shelf.behind, bench.shelf.on_flush = 1, [StorageFull("full")]
    body = Content(pieces(3))
    claim = ChecksumClaim("xxh128", _digest("xxh128", body.all))
    received = await bench.receive(body, Claims(header=claim))
    assert received.upload.offset == 0
    assert await bench.readable() == b""


# checksums


def _digest(algorithm: str, data: bytes) -> bytes:
    running = hashing.checksum(algorithm)
    running.update(memoryview(data))
    return running.digest()


def _parsed(field: str | None) -> ChecksumClaim | None:
    if field is None:
        return None
    name, digest = field.split()
    return ChecksumClaim(name, bytes.fromhex(digest))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("right", [True, False])
async def test_a_trailer_is_verified_without_reading_back(bench: Bench, algorithm: str, *, right: bool) -> None:
    """T-0A6: A checksum whose algorithm is told after the body is held against bytes that nobody can read yet."""
    body = Content(pieces(3))
    digest = _digest(algorithm, body.all if right else b"other")
    body.trailers["Upload-Checksum"] = f"{algorithm} {digest.hex()}"
    received = await bench.receive(body, Claims(trailer=_parsed))
    assert (received.problem is None) == right
    assert received.upload.offset == (len(body.all) if right else 0)
    assert not bench.shelf.reads


# the head


@pytest.mark.parametrize("size", [0, 1, SNIFF_BYTES - 1, SNIFF_BYTES, SNIFF_BYTES + 1, 3 * SNIFF_BYTES])
async def test_a_body_from_the_start_tells_the_first_bytes(bench: Bench, size: int) -> None:
    """The head is the first bytes of the upload, however they came in, and no more than are looked at."""
    sent = bytes(number % 251 for number in range(size))
    body = Content([sent[at : at + 3000] for at in range(0, size, 3000)])
    assert (await bench.receive(body)).head == sent[:SNIFF_BYTES]


async def test_a_body_that_resumes_tells_no_head(bench: Bench) -> None:
    """A request that brought the end of an upload does not know how it begins."""
    await bench.receive(Content([b"a" * 10], Ending.CUT))
    received = await bench.receive(Content([b"b" * 99_990]))
    assert received.upload.state is State.FINISHING
    assert received.head is None
