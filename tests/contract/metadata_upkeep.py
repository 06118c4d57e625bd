"""The contract of MetadataStore: what the janitor and the gauges ask."""

from __future__ import annotations

import asyncio
from functools import partial as bound
from typing import Any

import pytest

from service.metadata.base import Conflict, Ending, MetadataStore, Tombstone, Totals
from service.model import ConcatKind, FileId, State, Upload, UploadId
from tests.contract.metadata_values import (
    DAY,
    NOW,
    created,
    final,
    finishing,
    leased,
    make_event,
    make_file,
    part,
    partial,
    ready,
    step,
    use_of,
)


async def ended(store: MetadataStore, state: State, at: float) -> Upload:
    upload = await created(store)
    return await store.end_upload(upload.id, epoch=None, ending=Ending(state, at))


class UpkeepContract:
    """Expiry, purge, sums."""

    async def test_expired_uploads_oldest_first(self, store: MetadataStore) -> None:
        """Receiving uploads and ready partials past their expiry are listed, oldest first, up to the limit."""
        late = await created(store, expires_at=NOW - 1)
        early, lease = await leased(store, concat_kind=ConcatKind.PARTIAL)
        whole = step(1000, state=State.FINISHING, expires_at=NOW - 3)
        await store.advance(early.id, epoch=lease.epoch, from_offset=0, step=whole, now=NOW)
        await store.publish(early.id, epoch=lease.epoch, file=None, events=(), now=NOW)
        edge = await created(store, expires_at=NOW)
        await created(store, expires_at=NOW + 0.5)
        listed = await store.expired_uploads(now=NOW, limit=10)
        assert [upload.id for upload in listed] == [early.id, late.id, edge.id]
        assert listed[1] == late
        assert [upload.id for upload in await store.expired_uploads(now=NOW, limit=2)] == [early.id, late.id]

    async def test_only_receiving_and_partials_expire(self, store: MetadataStore) -> None:
        """Finishing uploads, ready ones that made a file, and ended ones are not listed as expired."""
        await finishing(store)
        await ready(store)
        await ended(store, State.FAILED, NOW)
        assert await store.expired_uploads(now=NOW + 99 * DAY, limit=10) == ()

    async def test_t096_partial_of_a_pending_final_is_left_out(self, store: MetadataStore) -> None:
        """T-096: a partial, receiving or ready, is not expired while a final that names it is pending."""
        receiving = await partial(store, expires_at=NOW)
        done = await ready(store, concat_kind=ConcatKind.PARTIAL)
        upload = await final(store, receiving, done, expires_at=NOW + 1000 * DAY)
        later = NOW + 99 * DAY
        assert await store.expired_uploads(now=later, limit=10) == ()
        await store.end_upload(upload.id, epoch=None, ending=Ending(State.TERMINATED, NOW))
        assert {each.id for each in await store.expired_uploads(now=later, limit=10)} == {receiving.id, done.id}

    async def test_finishing_uploads_oldest_first(self, store: MetadataStore) -> None:
        """Uploads in finishing are listed in the order they got there, up to the limit; no others are."""
        ids = []
        for delay in (3, 1, 2):
            upload, lease = await leased(store)
            await store.advance(
                upload.id, epoch=lease.epoch, from_offset=0, now=NOW + delay, step=step(1000, state=State.FINISHING)
            )
            ids.append(upload.id)
        await created(store)
        assert [upload.id for upload in await store.finishing_uploads(limit=10)] == [ids[1], ids[2], ids[0]]
        assert [upload.id for upload in await store.finishing_uploads(limit=1)] == [ids[1]]

    async def test_expired_files(self, store: MetadataStore) -> None:
        """Files past their expiry are listed, oldest first; those deleted, or without an expiry, are not."""
        for expires_at, deleted in ((NOW, False), (NOW - 1, False), (NOW + 1, False), (None, False), (NOW, True)):
            upload, lease = await finishing(store)
            file = make_file(upload, expires_at=expires_at)
            await store.publish(upload.id, epoch=lease.epoch, file=file, events=(), now=NOW)
            if deleted:
                await store.delete_file(file.id, now=NOW)
        assert [file.expires_at for file in await store.expired_files(now=NOW, limit=10)] == [NOW - 1, NOW]
        assert [file.expires_at for file in await store.expired_files(now=NOW, limit=1)] == [NOW - 1]

    async def test_lists_go_on_behind_what_stays(self, store: MetadataStore) -> None:
        """A page begins behind the last row of the page before, also where instants are the same."""
        for _ in range(5):
            await created(store, expires_at=NOW)
            await partial(store, expires_at=NOW)
            await finishing(store)
            await final(store, await partial(store), expires_at=NOW + DAY)
            upload, lease = await finishing(store)
            file = make_file(upload, expires_at=NOW)
            await store.publish(upload.id, epoch=lease.epoch, file=file, events=(), now=NOW)
        lists: list[tuple[Any, int]] = [
            (bound(store.expired_uploads, now=NOW), 10),
            (store.finishing_uploads, 5),
            (store.waiting_finals, 5),
            (bound(store.expired_files, now=NOW), 5),
        ]
        for ask, count in lists:
            whole = await ask(limit=100)
            pages, after = [], None
            while page := await ask(limit=2, after=after):
                pages += page
                after = page[-1]
            assert len(whole) == count
            assert pages == list(whole)

    async def test_a_page_does_not_need_the_row_it_goes_on_behind(self, store: MetadataStore) -> None:
        """What became of the last row meanwhile does not matter to the next page."""
        uploads = [await created(store, expires_at=NOW - number) for number in (3, 2, 1)]
        first = await store.expired_uploads(now=NOW, limit=1)
        await store.end_upload(uploads[0].id, epoch=None, ending=Ending(State.EXPIRED, NOW))
        assert list(await store.expired_uploads(now=NOW, limit=5, after=first[0])) == uploads[1:]

    async def test_file_keys(self, store: MetadataStore) -> None:
        """The key of each file is listed once, page by page, by id; those of deleted ones are marked."""
        uploads = [await ready(store) for _ in range(5)]
        await store.delete_file(uploads[0].file_id, now=NOW)
        found: list[tuple[FileId, str, bool]] = []
        while page := await store.file_keys(limit=2, after=found[-1][0] if found else None):
            found += page
        expected = [(upload.file_id, make_file(upload).key, upload is uploads[0]) for upload in uploads]
        assert found == sorted(expected)

    async def test_unfinished_uploads(self, store: MetadataStore) -> None:
        """Uploads that have a ledger are listed once, page by page, by id: partials also when they are ready."""
        wanted = [await created(store), await partial(store), (await finishing(store))[0]]
        wanted += [await ready(store, concat_kind=ConcatKind.PARTIAL), await final(store, wanted[1])]
        await ready(store)
        await ended(store, State.FAILED, NOW)
        found: list[Upload] = []
        while page := await store.unfinished_uploads(limit=2, after=found[-1].id if found else None):
            found += page
        assert found == sorted(wanted, key=lambda upload: upload.id)

    @pytest.mark.parametrize("limit", [1, 2, 100])
    async def test_tombstones_are_what_a_purge_forgets(self, store: MetadataStore, limit: int) -> None:
        """Listed page by page, each once; then a purge forgets just as many, and none is left."""
        old = [await ended(store, state, NOW - 1) for state in (State.FAILED, State.TERMINATED)]
        old += [await ready(store), await ready(store)]
        await store.delete_file(old[2].file_id, now=NOW - 1)
        await store.delete_file(old[3].file_id, now=NOW + 2)
        kept = [await ended(store, State.FAILED, NOW + 2), await created(store)]
        kept += [await ready(store, concat_kind=ConcatKind.PARTIAL)]
        # a link that an old upload and one that stays have in common
        shared = await ended(store, State.FAILED, NOW - 1)
        use = await store.link_use(shared.terms.issuer, shared.terms.jti)
        assert use is not None
        other = kept[1].with_(id=UploadId("u_" + "z" * 26), file_id=FileId("f_" + "z" * 26), terms=shared.terms)
        await store.create_upload(other, use_of(other, version=use.version))
        expected = [Tombstone("upload", upload.id) for upload in [*old, shared]]
        expected += [Tombstone("file", old[2].file_id)]
        expected += [Tombstone("link", upload.terms.jti, upload.terms.issuer) for upload in old]

        due: dict[str, Any] = {"before": NOW + 1, "link_before": NOW + DAY}
        found: list[Tombstone] = []
        while page := await store.tombstones(**due, limit=limit, after=found[-1] if found else None):
            found += page
        assert found == sorted(expected)
        assert await store.purge(**due, limit=100) == len(found)
        assert await store.tombstones(**due, limit=100) == ()

    async def test_an_event_of_a_file_is_told_while_there_is_one(self, store: MetadataStore) -> None:
        """Of a file that is not there, or was deleted, nothing is told."""
        upload = await ready(store)
        before = len(await store.events())
        event = make_event(upload.file_id, "file.corrupt", refs=[])
        await store.tell_of_file(upload.file_id, events=[event])
        assert [told for _, told in (await store.events())[before:]] == [event]
        await store.delete_file(upload.file_id, now=NOW)
        for file_id in (upload.file_id, FileId("f_none")):
            with pytest.raises(Conflict):
                await store.tell_of_file(file_id, events=[make_event(file_id)])
        assert len(await store.events()) == before + 1

    async def test_purge_forgets_old_tombstones(self, store: MetadataStore) -> None:
        """Ended uploads and ready ones last updated before the instant go; newer and open ones stay."""
        old = [await ended(store, state, NOW - 1) for state in (State.FAILED, State.EXPIRED, State.TERMINATED)]
        old.append(await ready(store))
        kept = [await ended(store, State.FAILED, NOW + 2), await created(store), (await finishing(store))[0]]
        assert await store.purge(before=NOW + 1, link_before=0, limit=100) == 4
        assert await store.uploads([upload.id for upload in old + kept]) == {upload.id: upload for upload in kept}

    async def test_file_outlives_the_tombstone_of_its_upload(self, store: MetadataStore) -> None:
        """A purged ready upload leaves its file alone."""
        upload = await ready(store)
        await store.purge(before=NOW + 1, link_before=0, limit=100)
        assert await store.upload_of_file(upload.file_id) is None
        assert await store.file(upload.file_id) == make_file(upload)

    async def test_purge_leaves_a_ready_partial_to_the_sweeper(self, store: MetadataStore) -> None:
        """A ready partial has bytes somewhere: it is forgotten only after it was ended."""
        upload = await ready(store, concat_kind=ConcatKind.PARTIAL)
        assert await store.purge(before=NOW + 1, link_before=0, limit=100) == 0
        assert await store.ledger(upload.id) == (part(0, 0, 1000),)

    async def test_purge_forgets_deleted_files(self, store: MetadataStore) -> None:
        """A file deleted before the instant is forgotten, one deleted later or not at all is not."""
        old, new, live = [await ready(store) for _ in range(3)]
        await store.delete_file(old.file_id, now=NOW)
        await store.delete_file(new.file_id, now=NOW + 5)
        await store.purge(before=NOW + 1, link_before=0, limit=100)
        assert await store.file(old.file_id) is None
        assert await store.file(new.file_id) is not None
        assert await store.file(live.file_id) is not None

    async def test_purge_forgets_spent_links_last(self, store: MetadataStore) -> None:
        """A link use goes once its token expired before the instant and all it made is forgotten."""
        gone = await ended(store, State.FAILED, NOW)
        live = await created(store)
        token_end = gone.terms.expires_at
        await store.purge(before=NOW, link_before=token_end + 1, limit=100)
        assert await store.link_use("backend", gone.terms.jti) is not None
        await store.purge(before=NOW + 1, link_before=token_end, limit=100)
        assert await store.link_use("backend", gone.terms.jti) is not None
        assert await store.purge(before=NOW + 1, link_before=token_end + 1, limit=100) == 1
        assert await store.link_use("backend", gone.terms.jti) is None
        assert await store.link_use("backend", live.terms.jti) is not None

    async def test_purge_keeps_to_its_limit(self, store: MetadataStore) -> None:
        """A purge of many is done in bites, of uploads, files and links together, until nothing is left."""
        for _ in range(3):
            upload = await ready(store)
            await store.delete_file(upload.file_id, now=NOW)
        bites = [await store.purge(before=NOW + 1, link_before=NOW * 2, limit=4) for _ in range(4)]
        assert bites == [4, 4, 1, 0]

    async def test_identity(self, store: MetadataStore, other: MetadataStore) -> None:
        """Every process on the database reads the same random identity of it, however often."""
        identity = await store.identity()
        assert len(identity) == 32
        assert identity == await other.identity() == await store.identity()

    async def test_promised_bytes(self, store: MetadataStore) -> None:
        """What receiving uploads of known length still lack is promised, and nothing else."""
        assert await store.promised_bytes() == 0
        upload, lease = await leased(store, length=1 << 40)
        await store.advance(upload.id, epoch=lease.epoch, from_offset=0, step=step(24), now=NOW)
        await created(store, length=500)
        await created(store, length=None)
        await finishing(store)
        await ready(store)
        await ended(store, State.FAILED, NOW)
        assert await store.promised_bytes() == (1 << 40) - 24 + 500

    async def test_totals(self, store: MetadataStore) -> None:
        """Open uploads, files, and the bytes of files, of open uploads and of ready partials are counted."""
        assert await store.totals() == Totals(0, 0, 0, 0)
        upload, lease = await leased(store)
        await store.advance(upload.id, epoch=lease.epoch, from_offset=0, step=step(7), now=NOW)
        await finishing(store)
        await ready(store)
        await ready(store, concat_kind=ConcatKind.PARTIAL)
        deleted = await ready(store)
        await store.delete_file(deleted.file_id, now=NOW)
        await ended(store, State.EXPIRED, NOW)
        assert await store.totals() == Totals(uploads_open=2, files=1, file_bytes=1000, stored_bytes=7 + 3 * 1000)

    async def test_e1_a_duty_is_one_owners_for_its_term(self, store: MetadataStore, other: MetadataStore) -> None:
        """E1: until the term is over the owner alone can take a duty again; then the first who asks has it."""
        assert await store.take_duty("sweeps", "one", now=NOW, until=NOW + 10)
        assert not await other.take_duty("sweeps", "two", now=NOW + 9, until=NOW + 19)
        assert await store.take_duty("sweeps", "one", now=NOW + 9, until=NOW + 19)
        assert not await other.take_duty("sweeps", "two", now=NOW + 18, until=NOW + 28)
        assert await other.take_duty("sweeps", "two", now=NOW + 19, until=NOW + 29)
        assert not await store.take_duty("sweeps", "one", now=NOW + 19, until=NOW + 29)

    async def test_e1_of_many_who_ask_at_once_one_has_the_duty(
        self, store: MetadataStore, other: MetadataStore
    ) -> None:
        """E1: two stores and ten owners take a free duty at the same moment: one has it."""
        took = await asyncio.gather(
            *(each.take_duty("sweeps", f"{number}", now=NOW, until=NOW + 10)
              for number, each in enumerate((store, other) * 5))
        )  # fmt: skip
        assert took.count(True) == 1

    async def test_duties_are_apart(self, store: MetadataStore, other: MetadataStore) -> None:
        """Who has one duty has no other by that."""
        assert await store.take_duty("sweeps", "one", now=NOW, until=NOW + 10)
        assert await other.take_duty("orphans", "two", now=NOW, until=NOW + 10)

    async def test_a_duty_given_back_is_free(self, store: MetadataStore, other: MetadataStore) -> None:
        """Its owner's giving back frees it before its term; anybody else's does nothing, now or later."""
        await store.take_duty("sweeps", "one", now=NOW, until=NOW + 10)
        await other.give_back_duty("sweeps", "two")
        assert not await other.take_duty("sweeps", "two", now=NOW, until=NOW + 10)
        await store.give_back_duty("sweeps", "one")
        assert await other.take_duty("sweeps", "two", now=NOW, until=NOW + 10)
        await store.give_back_duty("sweeps", "one")
        assert not await store.take_duty("sweeps", "one", now=NOW, until=NOW + 10)

    async def test_no_duty_outlives_its_processes(self, store: MetadataStore) -> None:
        """After drop_leases every duty is free."""
        await store.take_duty("sweeps", "one", now=NOW, until=NOW + 10)
        await store.drop_leases()
        assert await store.take_duty("sweeps", "two", now=NOW, until=NOW + 10)
