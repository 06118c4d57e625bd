"""The contract of MetadataStore: leases, epochs and ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from service.clock import new_upload_id
from service.metadata.base import Asked, Conflict, Ending, Lease, LeaseHeld, MetadataStore
from service.model import ConcatKind, State, Upload
from tests.contract.metadata_values import (
    DAY,
    NOW,
    block,
    created,
    final,
    finishing,
    leased,
    make_event,
    part,
    partial,
    ready,
    step,
    use_of,
)


async def left(store: MetadataStore, **changes: Any) -> Upload:
    """An upload whose first 100 bytes somebody wrote, who gave the lease back with them."""
    upload, lease = await leased(store, **changes)
    first = step(100, parts=[part(1, 0, 100)], tail=b"f" * 16, releases=True)
    return await store.advance(upload.id, epoch=lease.epoch, from_offset=0, step=first, now=NOW)


class LeaseContract:
    """One writer (contract, section 5), and how an upload ends."""

    async def test_a_judge_sees_the_upload_before_anything_changes(self, store: MetadataStore) -> None:
        """What it raises is raised, the lease is free and the epoch as it was."""
        upload = await created(store)
        seen: list[Upload] = []

        def judge(found: Upload) -> None:
            seen.append(found)
            raise KeyError("no")

        with pytest.raises(KeyError):
            await store.acquire_lease(upload.id, "node.1", now=NOW, until=NOW + 10, judge=judge)
        assert seen == [upload]
        assert await store.lease(upload.id) is None
        assert (await store.acquire_lease(upload.id, "node.2", now=NOW, until=NOW + 10))[0].epoch == upload.epoch + 1

    async def test_a_lease_brings_what_its_holder_begins_with(self, store: MetadataStore) -> None:
        """The ledger, and the digest of the unfinished block, are those of the last commit."""
        upload, lease = await leased(store)
        assert (lease.ledger, lease.tail) == ((), None)
        parts = (part(0, 0, 150),)
        moved = step(150, parts=list(parts), blocks=[block(0)], tail=b"t" * 16)
        await store.advance(upload.id, epoch=lease.epoch, from_offset=0, step=moved, now=NOW)
        await store.release_lease(lease)
        again, _ = await store.acquire_lease(upload.id, "node.2", now=NOW, until=NOW + 10)
        assert (again.ledger, again.tail) == (parts, b"t" * 16)

    async def test_a_writer_without_a_lease_goes_on(self, store: MetadataStore) -> None:
        """Nobody having come in between, the step is as one under a lease, and the epoch stays."""
        before = await left(store)
        moved = step(150, parts=[part(1, 0, 150)], blocks=[block(0)], tail=b"t" * 16, expires_at=NOW + 2 * DAY)
        upload = await store.go_on(before, moved, now=NOW + 5)
        assert upload == before.with_(offset=150, expires_at=NOW + 2 * DAY, updated_at=NOW + 5)
        assert await store.upload(upload.id) == upload
        again, _ = await store.acquire_lease(upload.id, "node.2", now=NOW, until=NOW + 10)
        assert (again.ledger, again.tail, again.epoch) == ((part(1, 0, 150),), b"t" * 16, upload.epoch + 1)
        assert await store.blocks(upload.id) == (block(0),)

    @pytest.mark.parametrize("by", ["holder", "former holder", "dead holder", "end", "doubt", "another"])
    async def test_a_writer_without_a_lease_is_refused_where_anybody_was(self, store: MetadataStore, by: str) -> None:
        """Whoever holds the upload, held it, ended it or doubts it: nothing changes by a step without a lease."""
        upload = await left(store)
        if by == "holder":
            await store.acquire_lease(upload.id, "node.2", now=NOW, until=NOW + 10)
        elif by == "dead holder":
            await store.acquire_lease(upload.id, "node.2", now=NOW, until=NOW - 10)
        elif by == "former holder":
            lease, _ = await store.acquire_lease(upload.id, "node.2", now=NOW, until=NOW + 10)
            await store.release_lease(lease)
        elif by == "end":
            await store.end_upload(upload.id, epoch=None, ending=Ending(State.TERMINATED, NOW))
        elif by == "doubt":
            await store.begin_run("r1", "boot 1", unsynced=True)
            await store.begin_run("r2", "boot 2", unsynced=True)
        else:
            await store.go_on(upload, step(120, parts=[part(1, 0, 120)]), now=NOW)
        is_now = await store.upload(upload.id)
        with pytest.raises(Conflict):
            await store.go_on(upload, step(150, parts=[part(1, 0, 150)], blocks=[block(0)]), now=NOW)
        assert await store.upload(upload.id) == is_now
        assert await store.blocks(upload.id) == ()

    async def test_the_last_byte_needs_a_lease(self, store: MetadataStore) -> None:
        """A step without one neither reaches the length nor stays where it is."""
        upload = await left(store, length=150)
        with pytest.raises(Conflict):
            await store.go_on(upload, step(150), now=NOW)
        with pytest.raises(ValueError, match="offset"):
            await store.go_on(upload, step(100), now=NOW)
        assert await store.upload(upload.id) == upload

    async def test_a_step_can_give_the_lease_back(self, store: MetadataStore) -> None:
        """The last step of a request releases its lease, and only if it is taken."""
        upload, lease = await leased(store)
        last = step(100, releases=True)
        with pytest.raises(Conflict):
            await store.advance(upload.id, epoch=lease.epoch, from_offset=5, step=last, now=NOW)
        assert await store.lease(upload.id) is not None
        moved = await store.advance(upload.id, epoch=lease.epoch, from_offset=0, step=last, now=NOW)
        assert (moved.offset, await store.lease(upload.id)) == (100, None)

    async def test_lease_raises_the_epoch(self, store: MetadataStore) -> None:
        """A lease names owner and term, its epoch is one higher, and the upload comes along."""
        upload = await created(store)
        lease, now_it_is = await store.acquire_lease(upload.id, "node.1", now=NOW, until=NOW + 10)
        assert lease == Lease(upload.id, "node.1", 1, NOW + 10)
        assert now_it_is == upload.with_(epoch=1)
        assert await store.lease(upload.id) == lease
        assert await store.upload(upload.id) == now_it_is

    async def test_held_lease_is_refused(self, store: MetadataStore, other: MetadataStore) -> None:
        """Another owner is told who holds the lease and until when; nothing changes."""
        upload, lease = await leased(store)
        with pytest.raises(LeaseHeld) as held:
            await other.acquire_lease(upload.id, "node.2", now=NOW + 9.9, until=NOW + 99)
        assert (held.value.owner, held.value.until) == ("node.1", NOW + 10)
        assert await store.lease(upload.id) == lease

    async def test_expired_lease_is_free(self, store: MetadataStore, other: MetadataStore) -> None:
        """Once the term has run out another takes over, and the old holder's steps are fenced off (L2)."""
        upload, old = await leased(store)
        new, _ = await other.acquire_lease(upload.id, "node.2", now=NOW + 10, until=NOW + 20)
        assert new.epoch == old.epoch + 1
        with pytest.raises(Conflict):
            await store.advance(upload.id, epoch=old.epoch, from_offset=0, step=step(5), now=NOW + 10)
        moved = await other.advance(upload.id, epoch=new.epoch, from_offset=0, step=step(5), now=NOW + 10)
        assert moved.offset == 5

    async def test_own_lease_can_be_taken_again(self, store: MetadataStore) -> None:
        """The same owner is never held up by itself, and gets a new epoch."""
        upload, lease = await leased(store)
        again, _ = await store.acquire_lease(upload.id, "node.1", now=NOW + 1, until=NOW + 11)
        assert again == Lease(upload.id, "node.1", lease.epoch + 1, NOW + 11)

    async def test_one_of_many_gets_the_lease(self, store: MetadataStore, other: MetadataStore) -> None:
        """Of twenty owners over two stores one gets the lease; all others are told of that one."""
        upload = await created(store)
        results = await asyncio.gather(
            *(
                (store, other)[number % 2].acquire_lease(upload.id, f"node.{number}", now=NOW, until=NOW + 10)
                for number in range(20)
            ),
            return_exceptions=True,
        )
        winners = [result[0] for result in results if isinstance(result, tuple)]
        assert [winner.epoch for winner in winners] == [1]
        held = [result for result in results if isinstance(result, LeaseHeld)]
        assert {each.owner for each in held} == {winners[0].owner}
        assert len(held) == 19

    async def test_lease_in_every_live_state(self, store: MetadataStore) -> None:
        """What is finishing or ready can be leased too; what ended or never was cannot."""
        for upload in ((await finishing(store))[0], await ready(store)):
            lease, _ = await store.acquire_lease(upload.id, "node.1", now=NOW, until=NOW + 10)
            assert lease.epoch == upload.epoch + 1
        ended = await created(store)
        await store.end_upload(ended.id, epoch=None, ending=Ending(State.TERMINATED, NOW))
        for upload_id in (ended.id, new_upload_id()):
            with pytest.raises(Conflict):
                await store.acquire_lease(upload_id, "node.1", now=NOW, until=NOW + 10)

    async def test_released_lease_is_free(self, store: MetadataStore) -> None:
        """After a release nobody holds the upload; the epoch stays, and the next lease raises it."""
        upload, lease = await leased(store)
        await store.release_lease(lease)
        assert await store.lease(upload.id) is None
        assert await store.upload(upload.id) == upload
        next_lease, _ = await store.acquire_lease(upload.id, "node.2", now=NOW, until=NOW + 10)
        assert next_lease.epoch == lease.epoch + 1

    async def test_l5_late_release_leaves_the_successor_alone(self, store: MetadataStore, other: MetadataStore) -> None:
        """L5: a release after a take-over, by another owner or by the same, does nothing."""
        upload, first = await leased(store)
        second, _ = await other.acquire_lease(upload.id, "node.2", now=NOW + 11, until=NOW + 21)
        await store.release_lease(first)
        assert await store.lease(upload.id) == second
        third, _ = await other.acquire_lease(upload.id, "node.2", now=NOW + 12, until=NOW + 22)
        await other.release_lease(second)
        assert await store.lease(upload.id) == third

    async def test_asked_leases_of_an_owner(self, store: MetadataStore, other: MetadataStore) -> None:
        """A holder learns which of its leases are asked for, by the prefix of its owner strings, exactly."""
        mine, _ = await leased(store)
        theirs = await created(store)
        await store.acquire_lease(theirs.id, "Node.1", now=NOW, until=NOW + 10)
        unasked, _ = await leased(store)
        for upload in (mine, theirs):
            await other.ask_lease(upload.id, Asked.ANYHOW)
        assert await store.asked_leases("node.") == ((mine.id, Asked.ANYHOW),)
        assert await store.asked_leases("nod_") == ()
        assert unasked.id not in dict(await store.asked_leases(""))

    async def test_a_polite_question_can_be_answered(self, store: MetadataStore, other: MetadataStore) -> None:
        """Who is asked to let go if silent may say that it is not, as often as it is asked; nobody else may."""
        upload, lease = await leased(store)
        for _ in range(2):
            await other.ask_lease(upload.id, Asked.IF_SILENT)
            assert await store.asked_leases("node.") == ((upload.id, Asked.IF_SILENT),)
            await store.keep_lease(upload.id, "edon.")
            assert await other.lease(upload.id) == replace(lease, asked=Asked.IF_SILENT)
            await store.keep_lease(upload.id, "node.")
            assert await other.lease(upload.id) == lease
            assert await store.asked_leases("node.") == ()

    async def test_a_question_of_a_newer_writer_stands(self, store: MetadataStore, other: MetadataStore) -> None:
        """Neither a polite question nor the answer to one takes back that the lease is asked for anyhow."""
        upload, _ = await leased(store)
        await other.ask_lease(upload.id, Asked.ANYHOW)
        await other.ask_lease(upload.id, Asked.IF_SILENT)
        await store.keep_lease(upload.id, "node.")
        assert await store.asked_leases("node.") == ((upload.id, Asked.ANYHOW),)

    async def test_ask_ends_with_the_lease(self, store: MetadataStore) -> None:
        """A release or a new lease answers the question; nobody is asked for what nobody holds."""
        upload, lease = await leased(store)
        await store.ask_lease(upload.id, Asked.ANYHOW)
        await store.release_lease(lease)
        await store.ask_lease(upload.id, Asked.ANYHOW)
        await store.ask_lease(new_upload_id(), Asked.ANYHOW)
        assert await store.asked_leases("") == ()
        await store.acquire_lease(upload.id, "node.1", now=NOW, until=NOW + 10)
        assert await store.asked_leases("node.") == ()
        await store.ask_lease(upload.id, Asked.ANYHOW)
        await store.acquire_lease(upload.id, "node.1", now=NOW, until=NOW + 10)
        assert await store.asked_leases("node.") == ()

    async def test_renewal_is_by_prefix(self, store: MetadataStore) -> None:
        """All leases of the prefix get the new term, no other does, and epochs stay."""
        mine, lease = await leased(store)
        theirs = await created(store)
        their_lease, _ = await store.acquire_lease(theirs.id, "NODE.1", now=NOW, until=NOW + 10)
        free = await created(store)
        await store.renew_leases("node.", until=NOW + 50)
        assert await store.lease(mine.id) == replace(lease, until=NOW + 50)
        assert await store.lease(theirs.id) == their_lease
        assert await store.lease(free.id) is None

    async def test_dropped_leases_are_free(self, store: MetadataStore) -> None:
        """After drop_leases nothing is held or asked for, and epochs still rise."""
        upload, lease = await leased(store)
        await store.ask_lease(upload.id, Asked.ANYHOW)
        await store.drop_leases()
        assert await store.lease(upload.id) is None
        again, _ = await store.acquire_lease(upload.id, "node.2", now=NOW, until=NOW + 10)
        assert again.epoch == lease.epoch + 1

    async def test_leases_of_the_dead_are_dropped(self, store: MetadataStore) -> None:
        """drop_leases with a prefix frees what owners hold that start with it, in this case, and no other."""
        mine, _ = await leased(store)
        theirs = await created(store)
        their_lease, _ = await store.acquire_lease(theirs.id, "NODE.1", now=NOW, until=NOW + 10)
        await store.drop_leases("node.")
        assert await store.lease(mine.id) is None
        assert await store.lease(theirs.id) == their_lease

    async def test_end_takes_all_with_it(self, store: MetadataStore) -> None:
        """State, problem, event and epoch change together; ledger, blocks and lease are gone; the row stays."""
        upload, lease = await leased(store)
        await store.advance(
            upload.id, epoch=1, from_offset=0, step=step(9, parts=[part(0, 0, 9)], blocks=[block(0)]), now=NOW
        )
        event = make_event(upload.id, "upload.failed")
        ending = Ending(State.FAILED, NOW + 3, "type-refused", "resend as png", events=[event])
        ended = await store.end_upload(upload.id, epoch=lease.epoch, ending=ending)
        assert ended == upload.with_(
            state=State.FAILED, offset=9, epoch=2, updated_at=NOW + 3, problem="type-refused",
            problem_detail="resend as png",
        )  # fmt: skip
        assert await store.upload(upload.id) == ended
        assert await store.ledger(upload.id) == ()
        assert await store.blocks(upload.id) == ()
        assert await store.lease(upload.id) is None
        assert [told for _, told in await store.events()] == [event]

    async def test_end_expects_epoch_and_state(self, store: MetadataStore) -> None:
        """An end over another epoch or state, or of what ended, is a Conflict and tells nothing."""
        upload, lease = await finishing(store)
        ending = Ending(State.TERMINATED, NOW, events=[make_event()], free_link=True)
        for epoch, expected in ((lease.epoch + 1, ()), (None, (State.RECEIVING, State.READY))):
            with pytest.raises(Conflict):
                await store.end_upload(upload.id, epoch=epoch, ending=ending, expected=expected)
        assert await store.upload(upload.id) == upload
        assert await store.ledger(upload.id) == (part(0, 0, 1000),)
        await store.end_upload(upload.id, epoch=None, ending=Ending(State.TERMINATED, NOW), expected=(upload.state,))
        for upload_id in (upload.id, new_upload_id()):
            with pytest.raises(Conflict):
                await store.end_upload(upload_id, epoch=None, ending=ending)
        assert await store.events() == ()
        assert await store.link_use("backend", upload.terms.jti) == use_of(upload, version=1)

    async def test_end_frees_the_use(self, store: MetadataStore) -> None:
        """A freed use is gone from the link, whose version rises, so that it can make a new upload (T-05E)."""
        upload = await created(store)
        await store.end_upload(upload.id, epoch=None, ending=Ending(State.FAILED, NOW, free_link=True))
        assert await store.link_use("backend", upload.terms.jti) == use_of(upload, uploads=(), version=2)

    async def test_end_without_freeing_keeps_the_use(self, store: MetadataStore) -> None:
        """A use that is not freed still counts."""
        upload = await created(store)
        await store.end_upload(upload.id, epoch=None, ending=Ending(State.FAILED, NOW))
        assert await store.link_use("backend", upload.terms.jti) == use_of(upload, version=1)

    async def test_freed_partial_gives_its_bytes_back(self, store: MetadataStore) -> None:
        """A partial counts apart: its end lowers the count and the sum, not the uses."""
        upload = await partial(store)
        await store.end_upload(upload.id, epoch=None, ending=Ending(State.EXPIRED, NOW, free_link=True))
        use = await store.link_use("backend", upload.terms.jti)
        assert use == use_of(upload, uploads=(), partials=0, partial_bytes=0, version=2)

    async def test_e1_sweep_is_a_compare_and_set_on_expiry(self, store: MetadataStore, other: MetadataStore) -> None:
        """E1: an upload whose expiry a step moved after the sweeper saw it is not reaped."""
        upload, lease = await leased(store, expires_at=NOW + 20)
        sweep = Ending(State.EXPIRED, NOW + 20, events=[make_event()])
        moved = await other.advance(
            upload.id, epoch=lease.epoch, from_offset=0, step=step(1, expires_at=NOW + 21), now=NOW + 5
        )
        await other.release_lease(lease)
        with pytest.raises(Conflict):
            await store.end_upload(upload.id, epoch=None, ending=sweep, unexpired_before=NOW + 20)
        assert await store.upload(upload.id) == moved
        ended = await store.end_upload(upload.id, epoch=None, ending=sweep, unexpired_before=NOW + 21)
        assert ended.state is State.EXPIRED

    async def test_e1_sweep_leaves_a_held_upload_alone(self, store: MetadataStore) -> None:
        """E1: while a lease is valid the sweeper's end is a Conflict; a lease that ran out does not count."""
        upload, _ = await leased(store, expires_at=NOW + 1)
        with pytest.raises(Conflict):
            await store.end_upload(upload.id, epoch=None, ending=Ending(State.EXPIRED, NOW), unexpired_before=NOW + 9)
        ended = await store.end_upload(
            upload.id, epoch=None, ending=Ending(State.EXPIRED, NOW), unexpired_before=NOW + 10
        )
        assert ended.epoch == 2

    async def test_e1_two_sweepers_reap_once(self, store: MetadataStore, other: MetadataStore) -> None:
        """E1: of two sweepers one ends the upload and tells it."""
        upload = await created(store, expires_at=NOW)
        sweep = Ending(State.EXPIRED, NOW, events=[make_event()])
        results = await asyncio.gather(
            *(
                sweeper.end_upload(upload.id, epoch=None, ending=sweep, unexpired_before=NOW)
                for sweeper in (store, other)
            ),
            return_exceptions=True,
        )
        assert sorted(type(result).__name__ for result in results) == ["Conflict", "Upload"]
        assert len(await store.events()) == 1

    async def test_sweep_spares_a_partial_that_a_final_names(self, store: MetadataStore) -> None:
        """A final made after the sweeper saw its partial expired keeps the partial (T-096)."""
        some = await partial(store, expires_at=NOW)
        upload = await final(store, some)
        sweep = Ending(State.EXPIRED, NOW)
        with pytest.raises(Conflict):
            await store.end_upload(some.id, epoch=None, ending=sweep, unexpired_before=NOW)
        await store.end_upload(upload.id, epoch=None, ending=Ending(State.TERMINATED, NOW))
        ended = await store.end_upload(some.id, epoch=None, ending=sweep, unexpired_before=NOW)
        assert ended.state is State.EXPIRED

    async def test_pending_finals_of_a_partial(self, store: MetadataStore) -> None:
        """The finals that still receive and name the partial, each once; no other."""
        some, unnamed = await partial(store), await partial(store)
        one = await final(store, some, some)
        two = await final(store, some)
        gone = await final(store, some)
        await store.end_upload(gone.id, epoch=None, ending=Ending(State.FAILED, NOW))
        assert set(await store.pending_finals(some.id)) == {one.id, two.id}
        assert len(await store.pending_finals(some.id)) == 2
        assert await store.pending_finals(unnamed.id) == ()
        lease, _ = await store.acquire_lease(one.id, "node.1", now=NOW, until=NOW + 10)
        await store.advance(one.id, epoch=lease.epoch, from_offset=0, now=NOW,
                            step=step(0, length=0, expires_at=NOW + DAY, state=State.FINISHING))  # fmt: skip
        assert await store.pending_finals(some.id) == (two.id,)

    async def test_end_of_a_ready_partial(self, store: MetadataStore) -> None:
        """A ready partial ends like any live upload, and its ledger goes then."""
        upload = await ready(store, concat_kind=ConcatKind.PARTIAL)
        await store.end_upload(upload.id, epoch=None, ending=Ending(State.EXPIRED, NOW), expected=(State.READY,))
        assert await store.ledger(upload.id) == ()
