"""The contract of MetadataStore: runs, suspects, and the one way in which an offset falls."""

from __future__ import annotations

import pytest

from service.metadata.base import Begun, Conflict, Ending, Lease, MetadataStore
from service.model import ConcatKind, State, Upload
from tests.contract.metadata_values import (
    NOW,
    block,
    created,
    final,
    finishing,
    leased,
    make_file,
    part,
    partial,
    ready,
    step,
)


async def crash(store: MetadataStore) -> Begun:
    """A run that took bytes, then another boot of the machine."""
    await store.begin_run("before", "boot 1", unsynced=True)
    return await store.begin_run("after", "boot 2", unsynced=True)


async def suspect(store: MetadataStore, *, length: int | None = 1000) -> tuple[Upload, Lease]:
    """450 bytes in two parts, four whole blocks and a tail; and then the crash."""
    upload, lease = await leased(store, length=length)
    first = step(250, parts=[part(1, 0, 250)], blocks=[block(0), block(1)])
    await store.advance(upload.id, epoch=lease.epoch, from_offset=0, step=first, now=NOW)
    more = step(450, parts=[part(2, 250, 450)], blocks=[block(2), block(3)], tail=b"t" * 16)
    await store.advance(upload.id, epoch=lease.epoch, from_offset=250, step=more, now=NOW)
    await crash(store)
    found = await store.upload(upload.id)
    assert found is not None
    return found, lease


async def suspects(store: MetadataStore) -> set[str]:
    return {upload.id for upload in await store.suspect_uploads(limit=100)}


class CrashContract:
    """What a crash of the machine makes doubtful is said so until it was looked at."""

    # runs
    async def test_o6_another_boot_makes_what_is_unfinished_suspect(
        self, store: MetadataStore, other: MetadataStore
    ) -> None:
        """O6: Receiving and finishing uploads are suspect after a crash; finals, and what is over, are not."""
        unfinished = {(await created(store)).id, (await partial(store)).id, (await finishing(store))[0].id}
        done = await ready(store, concat_kind=ConcatKind.PARTIAL)
        joined = await final(store, done)
        file, ended = await ready(store), await created(store)
        await store.end_upload(ended.id, epoch=None, ending=Ending(State.FAILED, NOW))
        assert await crash(store) == Begun(unsynced=True, suspects=3)
        assert await suspects(other) == unfinished
        for upload_id in unfinished:
            found = await other.upload(upload_id)
            assert found is not None
            assert found.suspect
        for upload in (done, joined, file):
            assert await other.upload(upload.id) == upload

    async def test_the_first_run_finds_nothing_suspect(self, store: MetadataStore) -> None:
        """Without a run before there is nothing to doubt."""
        await created(store)
        assert await store.begin_run("first", "boot 1", unsynced=True) == Begun(unsynced=True, suspects=0)

    async def test_the_same_boot_makes_nothing_suspect(self, store: MetadataStore) -> None:
        """A run whose processes were killed left its bytes to the kernel, which is still there."""
        await created(store)
        await store.begin_run("killed", "boot 1", unsynced=True)
        assert await store.begin_run("next", "boot 1", unsynced=True) == Begun(unsynced=True, suspects=0)

    async def test_bytes_of_a_killed_run_are_doubted_after_the_next_one(self, store: MetadataStore) -> None:
        """A run that takes no unsynced bytes itself inherits those of the run before, on the same boot."""
        await created(store)
        await store.begin_run("killed", "boot 1", unsynced=True)
        assert await store.begin_run("careful", "boot 1", unsynced=False) == Begun(unsynced=True, suspects=0)
        assert await store.begin_run("next", "boot 2", unsynced=False) == Begun(unsynced=False, suspects=1)

    async def test_a_run_that_synced_all_leaves_no_doubt(self, store: MetadataStore) -> None:
        """After an orderly end another boot makes nothing suspect; nor after a run that synced as it went."""
        await created(store)
        await store.begin_run("orderly", "boot 1", unsynced=True)
        await store.end_run("orderly")
        assert await store.begin_run("careful", "boot 2", unsynced=False) == Begun(unsynced=False, suspects=0)
        assert await store.begin_run("next", "boot 3", unsynced=True) == Begun(unsynced=True, suspects=0)

    async def test_an_end_counts_for_its_own_run_only(self, store: MetadataStore, other: MetadataStore) -> None:
        """A run that ends after a newer one began says nothing about the newer one's bytes."""
        await created(store)
        await store.begin_run("old", "boot 1", unsynced=True)
        await other.begin_run("new", "boot 1", unsynced=True)
        await store.end_run("old")
        assert (await store.begin_run("next", "boot 2", unsynced=True)).suspects == 1

    async def test_a_suspect_stays_one_over_runs(self, store: MetadataStore) -> None:
        """Neither a restart nor an orderly end makes an upload that nobody checked any better."""
        upload, _ = await suspect(store)
        await store.begin_run("restarted", "boot 2", unsynced=True)
        await store.end_run("restarted")
        await store.begin_run("rebooted", "boot 3", unsynced=True)
        assert await suspects(store) == {upload.id}

    async def test_suspects_go_on_behind_what_stays(self, store: MetadataStore) -> None:
        """Suspects are listed oldest first, and a page begins behind the last of the page before."""
        uploads = [await created(store, updated_at=NOW - age) for age in (1, 5, 3)]
        await created(store, updated_at=NOW - 3)
        await crash(store)
        pages: list[Upload] = []
        after = None
        while page := await store.suspect_uploads(limit=2, after=after):
            pages += page
            after = page[-1]
        assert pages == list(await store.suspect_uploads(limit=10))
        assert [upload.updated_at for upload in pages] == [NOW - 5, NOW - 3, NOW - 3, NOW - 1]
        assert pages[0].id == uploads[1].id

    # what a suspect may not do
    async def test_a_suspect_is_not_advanced(self, store: MetadataStore) -> None:
        """A step of a suspect is a Conflict and changes nothing."""
        upload, lease = await suspect(store)
        with pytest.raises(Conflict):
            await store.advance(upload.id, epoch=lease.epoch, from_offset=450, step=step(500), now=NOW)
        assert await store.upload(upload.id) == upload

    async def test_c1_a_suspect_is_not_published(self, store: MetadataStore) -> None:
        """C1: A suspect that is finishing makes no file before it was checked."""
        upload, lease = await finishing(store)
        await crash(store)
        with pytest.raises(Conflict):
            await store.publish(upload.id, epoch=lease.epoch, file=make_file(upload), events=(), now=NOW)
        assert await store.file(upload.file_id) is None
        await store.acquit(upload.id, epoch=lease.epoch)
        done = await store.publish(upload.id, epoch=lease.epoch, file=make_file(upload), events=(), now=NOW)
        assert done.complete

    async def test_a_suspect_may_end(self, store: MetadataStore) -> None:
        """An upload that ends is nothing to check any more."""
        upload, _ = await suspect(store)
        ended = await store.end_upload(upload.id, epoch=None, ending=Ending(State.TERMINATED, NOW))
        assert not ended.suspect
        assert await suspects(store) == set()

    # acquitted
    async def test_an_acquitted_upload_is_as_it_was(self, store: MetadataStore) -> None:
        """Offset, ledger, blocks and tail stay; the upload can be advanced again."""
        upload, lease = await suspect(store)
        assert await store.acquit(upload.id, epoch=lease.epoch) == upload.with_(suspect=False)
        assert await store.upload(upload.id) == upload.with_(suspect=False)
        assert await store.ledger(upload.id) == (part(1, 0, 250), part(2, 250, 450))
        assert len(await store.blocks(upload.id)) == 4
        assert await store.tail(upload.id) == b"t" * 16
        assert await suspects(store) == set()
        await store.advance(upload.id, epoch=lease.epoch, from_offset=450, step=step(500), now=NOW)

    async def test_an_acquittal_expects_a_suspect_and_the_epoch(self, store: MetadataStore) -> None:
        """With another epoch, twice, or after its end an acquittal is a Conflict."""
        upload, lease = await suspect(store)
        with pytest.raises(Conflict):
            await store.acquit(upload.id, epoch=lease.epoch - 1)
        assert await suspects(store) == {upload.id}
        await store.acquit(upload.id, epoch=lease.epoch)
        with pytest.raises(Conflict):
            await store.acquit(upload.id, epoch=lease.epoch)
        ended = await store.end_upload(upload.id, epoch=None, ending=Ending(State.FAILED, NOW))
        with pytest.raises(Conflict):
            await store.acquit(upload.id, epoch=ended.epoch)

    # falling back
    async def test_a_fall_back_leaves_what_is_there(self, store: MetadataStore) -> None:
        """State, offset, ledger and blocks change together; the tail goes, expiry and length stay."""
        upload, lease = await suspect(store)
        kept = part(1, 0, 200)
        back = await store.fall_back(upload.id, epoch=lease.epoch, to_offset=200, parts=[kept], now=NOW + 5)
        assert back == upload.with_(offset=200, suspect=False, updated_at=NOW + 5)
        assert await store.upload(upload.id) == back
        assert await store.ledger(upload.id) == (kept,)
        assert await store.blocks(upload.id) == (block(0), block(1))
        assert await store.tail(upload.id) is None
        again = step(450, parts=[part(1, 0, 450)], blocks=[block(2), block(3)])
        await store.advance(upload.id, epoch=lease.epoch, from_offset=200, step=again, now=NOW + 6)
        assert len(await store.blocks(upload.id)) == 4

    async def test_a_fall_back_to_nothing(self, store: MetadataStore) -> None:
        """An upload of which nothing is left is at offset 0 without ledger and blocks."""
        upload, lease = await suspect(store)
        back = await store.fall_back(upload.id, epoch=lease.epoch, to_offset=0, parts=(), now=NOW)
        assert (back.offset, back.state) == (0, State.RECEIVING)
        assert await store.ledger(upload.id) == ()
        assert await store.blocks(upload.id) == ()

    async def test_a_fall_back_to_where_it_is_changes_the_ledger(self, store: MetadataStore) -> None:
        """The same bytes may lie elsewhere: offset, blocks and tail stay."""
        upload, lease = await suspect(store)
        moved = part(1, 0, 450, key="elsewhere")
        back = await store.fall_back(upload.id, epoch=lease.epoch, to_offset=450, parts=[moved], now=NOW)
        assert back.offset == 450
        assert await store.ledger(upload.id) == (moved,)
        assert len(await store.blocks(upload.id)) == 4
        assert await store.tail(upload.id) == b"t" * 16

    async def test_c1_a_finishing_upload_falls_back_to_receiving(self, store: MetadataStore) -> None:
        """C1: What lacks bytes finishes no more; its client brings them again, to the length it told."""
        upload, lease = await finishing(store)
        await crash(store)
        back = await store.fall_back(upload.id, epoch=lease.epoch, to_offset=100, parts=[part(0, 0, 100)], now=NOW)
        assert (back.state, back.offset, back.length) == (State.RECEIVING, 100, 1000)
        assert await store.blocks(upload.id) == (block(0),)
        assert await store.finishing_uploads(limit=10) == ()

    async def test_a_fall_back_never_rises(self, store: MetadataStore) -> None:
        """A fall back upwards, or of a finishing upload to its length, is a ValueError and changes nothing."""
        upload, lease = await suspect(store)
        with pytest.raises(ValueError, match="rise"):
            await store.fall_back(upload.id, epoch=lease.epoch, to_offset=451, parts=(), now=NOW)
        whole, other_lease = await finishing(store)
        await crash(store)
        with pytest.raises(ValueError, match="length"):
            await store.fall_back(whole.id, epoch=other_lease.epoch, to_offset=1000, parts=(), now=NOW)
        assert await suspects(store) == {upload.id, whole.id}

    async def test_only_a_suspect_falls_back(self, store: MetadataStore) -> None:
        """An offset that nobody doubts never falls: a Conflict, as with another epoch or after the end."""
        upload, lease = await suspect(store)
        with pytest.raises(Conflict):
            await store.fall_back(upload.id, epoch=lease.epoch + 1, to_offset=0, parts=(), now=NOW)
        await store.acquit(upload.id, epoch=lease.epoch)
        with pytest.raises(Conflict):
            await store.fall_back(upload.id, epoch=lease.epoch, to_offset=0, parts=(), now=NOW)
        ended = await store.end_upload(upload.id, epoch=None, ending=Ending(State.FAILED, NOW))
        with pytest.raises(Conflict):
            await store.fall_back(upload.id, epoch=ended.epoch, to_offset=0, parts=(), now=NOW)

    # the tail
    async def test_a_tail_belongs_to_its_offset(self, store: MetadataStore) -> None:
        """A tail is kept while the offset stands, replaced when told anew, and unknown once the offset moves on."""
        upload, lease = await leased(store, length=None)
        told: list[bytes | None] = []
        for start, to_offset, tail, length in (
            (0, 30, b"a" * 16, None),
            (30, 30, None, 1000),
            (30, 30, b"b" * 16, None),
            (30, 50, None, None),
        ):
            move = step(to_offset, tail=tail, length=length)
            await store.advance(upload.id, epoch=lease.epoch, from_offset=start, step=move, now=NOW)
            told.append(await store.tail(upload.id))
        assert told == [b"a" * 16, b"a" * 16, b"b" * 16, None]

    async def test_an_unknown_upload_has_no_tail(self, store: MetadataStore) -> None:
        """Nothing is known of what is not there."""
        assert await store.tail((await created(store)).id) is None
