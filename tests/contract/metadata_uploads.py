"""The contract of MetadataStore: uploads, links, files and their events."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from service.clock import new_upload_id
from service.metadata.base import Conflict, Ending, FileIdTaken, MetadataStore
from service.model import Block, ConcatKind, LinkTerms, Manifest, Protocol, State, UploadId
from tests.contract.metadata_values import (
    DAY,
    NOW,
    block,
    created,
    final,
    finishing,
    leased,
    make_event,
    make_file,
    make_upload,
    part,
    partial,
    ready,
    step,
    use_of,
)


class UploadContract:
    """From creation to a file, or to an end without one."""

    async def test_upload_comes_back_whole(self, store: MetadataStore) -> None:
        """Every field of an upload, its terms included, is read as it was written."""
        terms = LinkTerms(
            issuer="backend", jti="j", uses=3, owner="u42", max_size=1 << 40, size=7, types=("image/*", "text/plain"),
            sha256="ab" * 32, hold_seconds=5, ttl_seconds=6, ref="chat:1", meta={"a": [1, {"b": "ü"}]}, expires_at=99,
        )  # fmt: skip
        upload = make_upload(
            terms=terms, protocol=Protocol.IETF, strong_hash=True, created_at=NOW + 0.125, length=1 << 41,
            metadata="filename YQ==,x", filename="ü\n☃.png", media_type="image/png", updated_at=NOW + 0.5,
        )  # fmt: skip
        await store.create_upload(upload, use_of(upload))
        assert await store.upload(upload.id) == upload

    async def test_an_upload_can_begin_as_a_file(self, store: MetadataStore) -> None:
        """Upload, file, link use and events of a small file come together, in one step."""
        upload = make_upload(state=State.READY, offset=1000)
        file = make_file(upload)
        told = [make_event(upload.id, "upload.created"), make_event(file.id)]
        await store.create_ready(upload, use_of(upload), file, events=told)
        assert await store.upload(upload.id) == upload
        assert await store.file(file.id) == file
        used = await store.link_use(upload.terms.issuer, upload.terms.jti)
        assert used is not None
        assert used.uploads == (upload.id,)
        assert [event for _, event in await store.events()] == told

    async def test_a_link_that_was_used_begins_no_file(self, store: MetadataStore) -> None:
        """Where the link is not new nothing of a small file is recorded."""
        first = await created(store)
        upload = make_upload(state=State.READY, offset=1000, terms=first.terms)
        file = make_file(upload)
        with pytest.raises(Conflict):
            await store.create_ready(upload, use_of(upload), file, events=[make_event(file.id)])
        assert (await store.upload(upload.id), await store.file(file.id), await store.events()) == (None, None, ())

    async def test_a_file_id_that_is_taken_begins_no_file(self, store: MetadataStore) -> None:
        """Nor where the file id belongs to another."""
        first = await created(store)
        upload = make_upload(state=State.READY, offset=1000, file_id=first.file_id)
        with pytest.raises(FileIdTaken):
            await store.create_ready(upload, use_of(upload), make_file(upload))
        assert await store.upload(upload.id) is None
        assert await store.link_use(upload.terms.issuer, upload.terms.jti) is None

    async def test_final_keeps_the_order_of_its_partials(self, store: MetadataStore) -> None:
        """Partials are joined in the order given, also one that is named twice."""
        first, second = await partial(store), await partial(store)
        upload = await final(store, second, first, second)
        found = await store.upload(upload.id)
        assert found is not None
        assert found.partials == (second.id, first.id, second.id)

    async def test_unknown_upload_is_none(self, store: MetadataStore) -> None:
        """There is nothing under an id that was never made."""
        assert await store.upload(new_upload_id()) is None

    async def test_uploads_gives_those_that_exist(self, store: MetadataStore) -> None:
        """Of several ids the known ones come back, finals with their partials."""
        some = await partial(store)
        upload = await final(store, some)
        assert await store.uploads([upload.id, new_upload_id(), some.id]) == {some.id: some, upload.id: upload}
        assert await store.uploads([]) == {}

    @pytest.mark.parametrize("length", [15, 20, 28])
    async def test_uploads_are_found_by_the_beginning_of_their_id(self, store: MetadataStore, length: int) -> None:
        """Of several names those come back that an upload's id begins with, finals with their partials."""
        some = await partial(store)
        upload = await final(store, some)
        await created(store)
        names = [upload.id[:length], new_upload_id()[:length], some.id[:length]]
        assert await store.uploads_named(names) == {names[0]: upload, names[2]: some}
        assert await store.uploads_named([]) == {}

    @pytest.mark.parametrize("end", ["2" * 13, "7" * 13, "a" * 13, "z" * 13])
    async def test_a_name_has_no_neighbours(self, store: MetadataStore, end: str) -> None:
        """The first and the last id that begin so are found, and none before or behind those."""
        inside = await created(store, id=UploadId("u_" + "m" * 13 + end))
        for name in ("l" * 13, "m" * 12 + "l", "m" * 12 + "n", "n" * 13):
            await created(store, id=UploadId("u_" + name + end))
        assert await store.uploads_named(["u_" + "m" * 13]) == {"u_" + "m" * 13: inside}

    async def test_creation_raises_the_link_version(self, store: MetadataStore) -> None:
        """A link never used is None; a creation leaves its use as given, one version higher."""
        upload = make_upload()
        assert await store.link_use("backend", upload.terms.jti) is None
        use = use_of(upload, partials=2, partial_bytes=7)
        await store.create_upload(upload, use)
        assert await store.link_use("backend", upload.terms.jti) == replace(use, version=1)

    async def test_same_jti_of_another_issuer_is_another_link(self, store: MetadataStore) -> None:
        """Issuers do not share their tokens' ids."""
        upload = await created(store)
        assert await store.link_use("other", upload.terms.jti) is None

    async def test_second_use_needs_the_version_read(self, store: MetadataStore) -> None:
        """A creation over an older version of the link is a Conflict and makes nothing, no event either."""
        first = await created(store)
        second = make_upload(terms=first.terms)
        with pytest.raises(Conflict):
            await store.create_upload(second, use_of(second), events=[make_event()])
        assert await store.upload(second.id) is None
        assert await store.events() == ()
        use = use_of(second, uploads=(first.id, second.id), version=1)
        await store.create_upload(second, use)
        assert await store.link_use("backend", first.terms.jti) == replace(use, version=2)
        third = make_upload(terms=first.terms)
        with pytest.raises(Conflict):
            await store.create_upload(third, use_of(third, version=1))
        assert await store.link_use("backend", first.terms.jti) == replace(use, version=2)

    async def test_unknown_link_has_no_later_version(self, store: MetadataStore) -> None:
        """A creation over a version that never was is a Conflict."""
        upload = make_upload()
        with pytest.raises(Conflict):
            await store.create_upload(upload, use_of(upload, version=1))

    async def test_one_of_twenty_racing_creations_wins(self, store: MetadataStore, other: MetadataStore) -> None:
        """However many create under one link at once, over two stores, one does and nineteen are told (C4)."""
        terms = make_upload().terms
        uploads = [make_upload(terms=terms, file_id=make_upload().file_id) for _ in range(20)]
        results = await asyncio.gather(
            *(
                (store, other)[number % 2].create_upload(upload, use_of(upload))
                for number, upload in enumerate(uploads)
            ),
            return_exceptions=True,
        )
        assert sorted(type(result).__name__ for result in results) == ["Conflict"] * 19 + ["NoneType"]
        assert len(await store.uploads([upload.id for upload in uploads])) == 1

    async def test_live_upload_keeps_its_file_id(self, store: MetadataStore) -> None:
        """A file id that a live upload has is taken, and the refused creation leaves the link unused."""
        upload = await created(store)
        again = make_upload(file_id=upload.file_id)
        with pytest.raises(FileIdTaken):
            await store.create_upload(again, use_of(again), events=[make_event()])
        assert await store.upload(again.id) is None
        assert await store.link_use("backend", again.terms.jti) is None
        assert await store.events() == ()

    async def test_ended_upload_gives_its_file_id_back(self, store: MetadataStore) -> None:
        """After an end without a file another upload may make it."""
        upload = await created(store)
        await store.end_upload(upload.id, epoch=None, ending=Ending(State.FAILED, NOW))
        again = await created(store, file_id=upload.file_id, created_at=NOW + 1)
        assert await store.upload_of_file(upload.file_id) == again

    async def test_file_keeps_its_id_also_deleted(self, store: MetadataStore) -> None:
        """A file id is never used twice, whatever became of the upload and the file."""
        upload = await ready(store)
        await store.delete_file(upload.file_id, now=NOW)
        await store.end_upload(upload.id, epoch=None, ending=Ending(State.TERMINATED, NOW))
        again = make_upload(file_id=upload.file_id)
        with pytest.raises(FileIdTaken):
            await store.create_upload(again, use_of(again))

    async def test_partials_do_not_take_the_file_id(self, store: MetadataStore) -> None:
        """Partials and the final that joins them have the file id of one link (T-05F)."""
        first = await partial(store)
        second = await partial(store, file_id=first.file_id)
        upload = await final(store, first, second, file_id=first.file_id)
        third = await partial(store, file_id=first.file_id)
        assert await store.upload(third.id) == third
        assert await store.upload_of_file(first.file_id) == upload

    async def test_newest_upload_of_a_file(self, store: MetadataStore) -> None:
        """Of several attempts at one file the newest answers, whatever its state."""
        old = await created(store)
        await store.end_upload(old.id, epoch=None, ending=Ending(State.EXPIRED, NOW))
        new = await created(store, file_id=old.file_id, created_at=NOW + 1)
        failed = await store.end_upload(new.id, epoch=None, ending=Ending(State.FAILED, NOW + 2, "too-large", "no"))
        assert await store.upload_of_file(old.file_id) == failed
        assert (failed.problem, failed.problem_detail) == ("too-large", "no")

    async def test_advance_moves_all_at_once(self, store: MetadataStore) -> None:
        """Offset, expiry, ledger and blocks move in one step, and the step returns the upload."""
        upload, lease = await leased(store)
        move = step(250, expires_at=NOW + 2 * DAY, parts=[part(0, 0, 250, digest=b"d", etag="e", epoch=3)],
                    blocks=[block(0), Block(1, b"x" * 16, b"s" * 32)])  # fmt: skip
        moved = await store.advance(upload.id, epoch=lease.epoch, from_offset=0, step=move, now=NOW + 5)
        assert moved == upload.with_(offset=250, expires_at=NOW + 2 * DAY, updated_at=NOW + 5)
        assert await store.upload(upload.id) == moved
        assert await store.ledger(upload.id) == (part(0, 0, 250, digest=b"d", etag="e", epoch=3),)
        assert await store.blocks(upload.id) == (block(0), Block(1, b"x" * 16, b"s" * 32))

    async def test_parts_are_replaced_by_number(self, store: MetadataStore) -> None:
        """A part of the same number takes the place of the old one; others stay; order is by number."""
        upload, lease = await leased(store)
        await store.advance(
            upload.id, epoch=lease.epoch, from_offset=0, now=NOW,
            step=step(20, parts=[part(0, 0, 10), part(1, 10, 20, key="tail")]),
        )  # fmt: skip
        await store.advance(
            upload.id, epoch=lease.epoch, from_offset=20, now=NOW, step=step(30, parts=[part(1, 10, 30, key="new")])
        )
        assert await store.ledger(upload.id) == (part(0, 0, 10), part(1, 10, 30, key="new"))

    async def test_parts_end_the_ledger(self, store: MetadataStore) -> None:
        """Entries above the last number that a step gives are gone with it; those of other uploads stay."""
        ledgers = [part(1, 0, 10), part(2, 10, 12), part(3, 12, 13), part(4, 13, 20)]
        (upload, lease), (other, its_lease) = await leased(store), await leased(store)
        for one, held in ((upload, lease), (other, its_lease)):
            await store.advance(one.id, epoch=held.epoch, from_offset=0, now=NOW, step=step(20, parts=ledgers))
        whole = part(2, 10, 30, key="whole")
        await store.advance(upload.id, epoch=lease.epoch, from_offset=20, now=NOW, step=step(30, parts=[whole]))
        assert await store.ledger(upload.id) == (part(1, 0, 10), whole)
        assert await store.ledger(other.id) == tuple(ledgers)

    async def test_a_step_without_parts_leaves_the_ledger(self, store: MetadataStore) -> None:
        """A step that brings no bytes, only a length or an expiry, changes no entry."""
        ledger = [part(1, 0, 10), part(2, 10, 12)]
        upload, lease = await leased(store, length=None)
        await store.advance(upload.id, epoch=lease.epoch, from_offset=0, now=NOW, step=step(12, parts=ledger))
        await store.advance(upload.id, epoch=lease.epoch, from_offset=12, now=NOW, step=step(12, length=100))
        assert await store.ledger(upload.id) == tuple(ledger)

    async def test_a_refused_step_cuts_no_ledger(self, store: MetadataStore) -> None:
        """A step over another epoch leaves the entries above its parts too (L2)."""
        ledger = [part(1, 0, 10), part(2, 10, 12)]
        upload, lease = await leased(store)
        await store.advance(upload.id, epoch=lease.epoch, from_offset=0, now=NOW, step=step(12, parts=ledger))
        with pytest.raises(Conflict):
            await store.advance(
                upload.id, epoch=lease.epoch - 1, from_offset=12, now=NOW, step=step(20, parts=[part(1, 0, 20)])
            )
        assert await store.ledger(upload.id) == tuple(ledger)

    @pytest.mark.parametrize(("from_offset", "epoch"), [(0, 1), (11, 1), (10, 0), (10, 2)])
    async def test_advance_expects_offset_and_epoch(self, store: MetadataStore, from_offset: int, epoch: int) -> None:
        """A step over another offset or epoch is a Conflict, and nothing of it is there (L2)."""
        upload, lease = await leased(store)
        assert lease.epoch == 1
        before = await store.advance(upload.id, epoch=1, from_offset=0, step=step(10), now=NOW)
        with pytest.raises(Conflict):
            await store.advance(
                upload.id, epoch=epoch, from_offset=from_offset, now=NOW + 1,
                step=step(20, parts=[part(0, 0, 20)], blocks=[block(0)]),
            )  # fmt: skip
        assert await store.upload(upload.id) == before
        assert await store.ledger(upload.id) == ()
        assert await store.blocks(upload.id) == ()

    async def test_advance_of_no_upload(self, store: MetadataStore) -> None:
        """A step of an upload that is not there is a Conflict."""
        with pytest.raises(Conflict):
            await store.advance(new_upload_id(), epoch=1, from_offset=0, step=step(1), now=NOW)

    async def test_advance_only_while_receiving(self, store: MetadataStore) -> None:
        """An upload that is finishing takes no more steps."""
        upload, lease = await finishing(store)
        with pytest.raises(Conflict):
            await store.advance(upload.id, epoch=lease.epoch, from_offset=1000, step=step(1000), now=NOW)

    @pytest.mark.parametrize("to_offset", [9, 1001])
    async def test_advance_neither_falls_nor_passes_the_length(self, store: MetadataStore, to_offset: int) -> None:
        """An offset below the old one or past the length is a ValueError and changes nothing."""
        upload, lease = await leased(store)
        before = await store.advance(upload.id, epoch=lease.epoch, from_offset=0, step=step(10), now=NOW)
        with pytest.raises(ValueError, match="offset would"):
            await store.advance(upload.id, epoch=lease.epoch, from_offset=10, step=step(to_offset), now=NOW)
        assert await store.upload(upload.id) == before

    async def test_deferred_length_becomes_known(self, store: MetadataStore) -> None:
        """A step may tell the length, also without a byte; from then on it holds and stays."""
        upload, lease = await leased(store, length=None)
        moved = await store.advance(upload.id, epoch=lease.epoch, from_offset=0, step=step(0, length=5), now=NOW)
        assert (moved.offset, moved.length) == (0, 5)
        moved = await store.advance(upload.id, epoch=lease.epoch, from_offset=0, step=step(3), now=NOW)
        assert (moved.offset, moved.length) == (3, 5)
        with pytest.raises(Conflict):
            await store.advance(upload.id, epoch=lease.epoch, from_offset=3, step=step(4, length=6), now=NOW)
        with pytest.raises(ValueError, match="length"):
            await store.advance(upload.id, epoch=lease.epoch, from_offset=3, step=step(6), now=NOW)

    async def test_deferral_is_remembered(self, store: MetadataStore) -> None:
        """An upload made without a length says so for good, also once the length is known (T-05D)."""
        upload, lease = await leased(store, length=None, deferred=True)
        moved = await store.advance(upload.id, epoch=lease.epoch, from_offset=0, step=step(0, length=5), now=NOW)
        assert (moved.length, moved.deferred) == (5, True)
        assert await store.upload(upload.id) == moved

    async def test_length_told_below_the_step(self, store: MetadataStore) -> None:
        """A length told in a step bounds that step too."""
        upload, lease = await leased(store, length=None)
        with pytest.raises(ValueError, match="length"):
            await store.advance(upload.id, epoch=lease.epoch, from_offset=0, step=step(6, length=5), now=NOW)

    async def test_publish_makes_the_file(self, store: MetadataStore) -> None:
        """Ready, file and event appear together, and the ledger and blocks went into the manifest."""
        upload, lease = await finishing(store)
        manifest = Manifest(
            (1 << 40) + 1, 100, "sha256", b"r" * 32, (b"a" * 16, b"b" * 16), (b"c" * 32, b"d" * 32), b"e" * 32
        )
        file = make_file(
            upload, manifest=manifest, owner="u", sha256="ab", media_type="a/b", sniffed_type="c/d", filename="n",
            ref="r", expires_at=NOW + 1.5,
        )  # fmt: skip
        event = make_event(file.id, size=1, refs=["x"])
        done = await store.publish(upload.id, epoch=lease.epoch, file=file, events=[event], now=NOW + 9)
        assert done == upload.with_(state=State.READY, updated_at=NOW + 9)
        assert await store.lease(upload.id) is None
        assert await store.file(file.id) == file
        assert [told for _, told in await store.events()] == [event]
        assert await store.ledger(upload.id) == ()
        assert await store.blocks(upload.id) == ()

    async def test_empty_file_has_an_empty_manifest(self, store: MetadataStore) -> None:
        """No blocks, and no blocks of a second digest, are told apart from none computed."""
        upload, lease = await finishing(store)
        file = make_file(upload, manifest=Manifest(0, 100, "xxh128", b"r" * 16, (), (), b"s" * 32))
        await store.publish(upload.id, epoch=lease.epoch, file=file, events=(), now=NOW)
        assert await store.file(file.id) == file

    async def test_publish_twice_changes_nothing(self, store: MetadataStore) -> None:
        """The second publish returns what is there and tells no event (C1)."""
        upload, lease = await finishing(store)
        first = await store.publish(
            upload.id, epoch=lease.epoch, file=make_file(upload), events=[make_event()], now=NOW
        )
        again = await store.publish(
            upload.id, epoch=lease.epoch, file=make_file(upload, key="other"), events=[make_event()], now=NOW + 1
        )
        assert again == first
        assert await store.file(upload.file_id) == make_file(upload)
        assert len(await store.events()) == 1

    async def test_published_partial_keeps_its_ledger(self, store: MetadataStore) -> None:
        """A partial has no file, so what it is made of stays known."""
        upload = await ready(store, concat_kind=ConcatKind.PARTIAL)
        assert await store.file(upload.file_id) is None
        assert await store.ledger(upload.id) == (part(0, 0, 1000),)
        assert await store.blocks(upload.id) == (block(0), block(1))

    async def test_publish_needs_finishing_and_epoch(self, store: MetadataStore) -> None:
        """What still receives, ended, or was leased anew cannot be published, and no file appears."""
        receiving, its_lease = await leased(store)
        upload, lease = await finishing(store)
        await store.acquire_lease(upload.id, "node.2", now=NOW + 11, until=NOW + 21)
        ended = await created(store)
        await store.end_upload(ended.id, epoch=None, ending=Ending(State.FAILED, NOW))
        for one, epoch in ((receiving, its_lease.epoch), (upload, lease.epoch), (ended, 1), (make_upload(), 0)):
            with pytest.raises(Conflict):
                await store.publish(one.id, epoch=epoch, file=make_file(one), events=[make_event()], now=NOW)
            assert await store.file(one.file_id) is None
        assert await store.events() == ()

    async def test_deleted_file_stays_known(self, store: MetadataStore) -> None:
        """A deletion is a date on the file and an event; a second one changes and tells nothing."""
        upload = await ready(store)
        gone = await store.delete_file(upload.file_id, now=NOW + 1, events=[make_event()])
        assert gone == replace(make_file(upload), deleted_at=NOW + 1)
        assert await store.delete_file(upload.file_id, now=NOW + 2, events=[make_event()]) == gone
        assert await store.file(upload.file_id) == gone
        assert len(await store.events()) == 1

    async def test_delete_of_no_file(self, store: MetadataStore) -> None:
        """What is not there cannot be deleted: a Conflict, without an event."""
        with pytest.raises(Conflict):
            await store.delete_file(make_upload().file_id, now=NOW, events=[make_event()])
        assert await store.events() == ()

    async def test_events_are_numbered_in_order(self, store: MetadataStore) -> None:
        """Events come oldest first, after a cursor, up to a limit, with their content."""
        told = [make_event(str(number), n=number, deep={"ü": [None]}) for number in range(5)]
        upload = make_upload()
        await store.create_upload(upload, use_of(upload), events=told[:3])
        await store.end_upload(upload.id, epoch=None, ending=Ending(State.EXPIRED, NOW, events=told[3:]))
        numbered = await store.events()
        assert [event for _, event in numbered] == told
        sequence = [number for number, _ in numbered]
        assert sequence == sorted(set(sequence))
        assert await store.events(after=sequence[1], limit=2) == numbered[2:4]
        assert await store.events(after=sequence[-1]) == ()

    async def test_cancelled_caller_leaves_all_or_nothing(self, store: MetadataStore) -> None:
        """A creation whose caller goes away is there whole or not at all, and the store goes on."""
        uploads = [make_upload() for _ in range(30)]
        tasks = [
            asyncio.ensure_future(store.create_upload(upload, use_of(upload), events=[make_event(upload.id)]))
            for upload in uploads
        ]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[1::2] == [None] * 15
        made = set(await store.uploads([upload.id for upload in uploads]))
        assert made == {event.subject for _, event in await store.events()}
        assert made == {upload.id for upload in uploads if await store.link_use("backend", upload.terms.jti)}

    async def test_probe_of_a_working_store(self, store: MetadataStore) -> None:
        """A store that can read and write says so, and tells no event of it."""
        await store.probe()
        assert await store.events() == ()
