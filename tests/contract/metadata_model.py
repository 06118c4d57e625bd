"""The contract of MetadataStore: a random walk, checked at each step against a model of a few lines."""

from __future__ import annotations

import random
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from service.metadata.base import Conflict, Ending, Lease, LeaseHeld, MetadataStore
from service.model import Part, State, Upload
from tests.contract.metadata_values import DAY, NOW, created, make_file, part, step

#: what a call can come to, apart from a result
REFUSALS = (Conflict, LeaseHeld, ValueError)
TERM = 10.0


@dataclass
class Known:
    """What the walk believes of one upload."""

    upload: Upload
    lease: Lease | None = None
    parts: tuple[Part, ...] = ()
    #: every lease that was ever given; old ones are tried too
    given: tuple[Lease, ...] = ()


class WalkContract:
    """Any order of calls of any holders, stale ones too."""

    @pytest.mark.parametrize("seed", range(6))
    async def test_any_order_of_calls_agrees_with_the_model(
        self, store: MetadataStore, other: MetadataStore, seed: int
    ) -> None:
        """After each of 150 random calls, over two stores, result, upload, ledger and lease are what the model says."""
        chance = random.Random(seed)
        known = [Known(await created(store)) for _ in range(3)]
        now = NOW
        for _ in range(150):
            now += chance.choice([0, 1, 6])
            each = chance.choice(known)
            call = chance.choice([acquire, acquire, advance, advance, advance, release, publish, end])
            await call(chance.choice([store, other]), each, chance, now)
            upload_id = each.upload.id
            assert await store.upload(upload_id) == each.upload
            assert await other.ledger(upload_id) == each.parts
            assert await store.lease(upload_id) == each.lease
            if not each.upload.state.live or each.upload.complete:
                known[known.index(each)] = Known(await created(store))


async def outcome(call: Coroutine[Any, Any, object]) -> object:
    """What it returned, or the refusal."""
    try:
        return await call
    except REFUSALS as refusal:
        return refusal


async def acquire(store: MetadataStore, known: Known, chance: random.Random, now: float) -> None:
    owner = chance.choice(["node.1", "node.2"])
    held = known.lease is not None and known.lease.owner != owner and now < known.lease.until
    result = await outcome(store.acquire_lease(known.upload.id, owner, now=now, until=now + TERM))
    assert isinstance(result, LeaseHeld) == held
    if held:
        return
    known.upload = known.upload.with_(epoch=known.upload.epoch + 1)
    known.lease = Lease(known.upload.id, owner, known.upload.epoch, now + TERM)
    known.given += (known.lease,)
    assert result == (known.lease, known.upload)


async def advance(store: MetadataStore, known: Known, chance: random.Random, now: float) -> None:
    upload = known.upload
    epoch = chance.choice([upload.epoch, upload.epoch, upload.epoch - 1])
    start = upload.offset + chance.choice([0, 0, 0, -1, 1])
    to_offset = start + chance.choice([-1, 0, 100, 400])
    state = State.FINISHING if to_offset == upload.length else State.RECEIVING
    new = part(chance.randrange(len(known.parts) + 1), 0, to_offset)
    move = step(to_offset, parts=[new], state=state, expires_at=now + DAY)
    fits = epoch == upload.epoch and start == upload.offset and upload.state is State.RECEIVING
    within = start <= to_offset <= (upload.length or 0)
    result = await outcome(store.advance(upload.id, epoch=epoch, from_offset=start, step=move, now=now))
    if not (fits and within):
        assert isinstance(result, ValueError if fits or to_offset < start else Conflict)
        return
    known.upload = upload.with_(offset=to_offset, state=state, expires_at=now + DAY, updated_at=now)
    known.parts = (*known.parts[: new.number], new)
    assert result == known.upload


async def release(store: MetadataStore, known: Known, chance: random.Random, now: float) -> None:
    if known.given:
        lease = chance.choice(known.given)
        await store.release_lease(lease)
        if known.lease and (lease.owner, lease.epoch) == (known.lease.owner, known.lease.epoch):
            known.lease = None


async def publish(store: MetadataStore, known: Known, chance: random.Random, now: float) -> None:
    upload = known.upload
    epoch = chance.choice([upload.epoch, upload.epoch - 1])
    try:
        await store.publish(upload.id, epoch=epoch, file=make_file(upload), events=(), now=now)
    except Conflict:
        assert upload.state is not State.FINISHING or epoch != upload.epoch
        assert await store.file(upload.file_id) is None
        return
    assert upload.state is State.FINISHING
    assert epoch == upload.epoch
    known.upload, known.parts = upload.with_(state=State.READY, updated_at=now), ()


async def end(store: MetadataStore, known: Known, chance: random.Random, now: float) -> None:
    """Mostly the sweeper, which may not take what is held or moved; seldom a client who gives up."""
    upload = known.upload
    sweeps = chance.random() < 0.9
    instant = now + chance.choice([0, 2 * DAY])
    free = known.lease is None or known.lease.until <= instant
    may = not sweeps or (upload.expires_at <= instant and free)
    ending = Ending(State.EXPIRED if sweeps else State.TERMINATED, now)
    try:
        await store.end_upload(upload.id, epoch=None, ending=ending, unexpired_before=instant if sweeps else None)
    except Conflict:
        assert not may
        return
    assert may
    known.upload = upload.with_(state=ending.state, epoch=upload.epoch + 1, updated_at=now)
    known.parts, known.lease = (), None
