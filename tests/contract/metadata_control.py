"""The contract of ControlStore: references, quotas and counters, pages, jobs, revocations, repeated requests."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

import pytest

from service.clock import new_file_id
from service.metadata.base import Conflict, Ending, MetadataStore, QuotaExceeded
from service.metadata.control import MOST_REFS, ControlStore, Job, Refs, Repeatable, Revocation, Usage, instant_of
from service.model import ConcatKind, File, Quota, State, Upload
from tests.contract.metadata_values import (
    DAY,
    NOW,
    created,
    finishing,
    make_event,
    make_file,
    make_upload,
    step,
    use_of,
)

LATER = NOW + DAY


class Store(MetadataStore, ControlStore, Protocol):
    """Both ports, as the one adapter has them."""


def owned(owner: str | None = "u1", size: int = 1000, **changes: Any) -> Upload:
    """An upload that reserves its length for its owner."""
    upload = make_upload(length=size, **changes)
    terms = replace(upload.terms, owner=owner, max_size=size)
    return upload.with_(terms=terms, reserved=size if owner else 0)


async def put(store: MetadataStore, upload: Upload, **options: Any) -> Upload:
    await store.create_upload(upload, use_of(upload), **options)
    return upload


async def published(store: MetadataStore, upload: Upload | None = None, **changes: Any) -> File:
    """A file, of an upload of its own unless one is given."""
    made, lease = await finishing(store) if upload is None else await filled(store, upload)
    file = None if made.concat_kind is ConcatKind.PARTIAL else make_file(made, owner=made.terms.owner, **changes)
    await store.publish(made.id, epoch=lease.epoch, file=file, events=(), now=NOW)
    return file or make_file(made)


async def filled(store: MetadataStore, upload: Upload) -> tuple[Upload, Any]:
    lease, upload = await store.acquire_lease(upload.id, "node.1", now=NOW, until=NOW + 10)
    whole = step(upload.length or 0, state=State.FINISHING)
    return await store.advance(upload.id, epoch=lease.epoch, from_offset=0, step=whole, now=NOW), lease


class ControlContract:
    """Every sentence of `service.metadata.control`."""

    # references

    async def test_references_come_with_the_file_and_go_one_by_one(self, store: Store) -> None:
        """A file has its link's reference and those it was claimed with, each once, until they are released."""
        file = await published(store, ref="chat:1")
        for ref in ("chat:2", "chat:2", "a:é"):
            await store.claim_file(file.id, ref, now=NOW)
        assert await store.refs([file.id]) == {file.id: Refs(3, ("a:é", "chat:1", "chat:2"))}
        assert (await store.release_file(file.id, "chat:1", now=NOW)).deleted_at is None
        assert (await store.release_file(file.id, "never", now=NOW)).deleted_at is None
        assert (await store.refs([file.id]))[file.id].listed == ("a:é", "chat:2")

    async def test_E4_the_last_release_deletes_the_file_and_tells_it(self, store: Store) -> None:
        """Only the release of the last reference deletes, and in the same change says so, with no reference left."""
        file = await published(store, ref="chat:1")
        await store.claim_file(file.id, "chat:2", now=NOW)
        told = [make_event(file.id, "file.deleted", refs=["stale"])]
        assert (await store.release_file(file.id, "chat:1", now=NOW + 1, events=told)).deleted_at is None
        assert await store.events() == ()
        assert (await store.release_file(file.id, "chat:2", now=NOW + 2, events=told)).deleted_at == NOW + 2
        ((_, event),) = await store.events()
        assert event.data == {"refs": []}
        assert (await store.release_file(file.id, "chat:2", now=NOW + 3, events=told)).deleted_at == NOW + 2
        assert len(await store.events()) == 1

    async def test_releasing_what_was_never_claimed_deletes_nothing(self, store: Store) -> None:
        """A file without any reference stays when one is released that it has not."""
        file = await published(store)
        assert (await store.release_file(file.id, "chat:1", now=NOW)).deleted_at is None

    async def test_E4_a_claim_ends_the_hold_and_leaves_the_ttl(self, store: Store) -> None:
        """Once claimed a file lives as long as its ttl says, also when it was to end sooner unclaimed."""
        held = await published(store, expires_at=NOW + 5, lives_until=None)
        short = await published(store, expires_at=NOW + 5, lives_until=NOW + 50)
        assert (await store.claim_file(held.id, "r", now=NOW + 4)).expires_at is None
        assert (await store.claim_file(short.id, "r", now=NOW + 4)).expires_at == NOW + 50
        assert await store.expired_files(now=NOW + 49, limit=10) == ()

    async def test_E4_a_sweep_that_comes_after_the_claim_finds_nothing_to_do(self, store: Store) -> None:
        """A file that was listed as expired and claimed in between is not deleted."""
        file = await published(store, expires_at=NOW + 5)
        await store.claim_file(file.id, "r", now=NOW + 4)
        with pytest.raises(Conflict):
            await store.delete_file(file.id, now=NOW + 6, expired_before=NOW + 6)
        assert (await store.delete_file(file.id, now=NOW + 7)).deleted_at == NOW + 7

    async def test_what_is_gone_cannot_be_claimed(self, store: Store) -> None:
        """Unknown, deleted and past its time are a Conflict."""
        file, late = await published(store), await published(store, expires_at=NOW + 5)
        await store.delete_file(file.id, now=NOW)
        for file_id, now in ((new_file_id(), NOW), (file.id, NOW), (late.id, NOW + 5)):
            with pytest.raises(Conflict):
                await store.claim_file(file_id, "r", now=now)
        with pytest.raises(Conflict):
            await store.release_file(new_file_id(), "r", now=NOW)

    async def test_events_of_a_file_tell_the_references_of_that_moment(self, store: Store) -> None:
        """Whatever the event's maker believed, `refs` is what the file has when the event is written."""
        file = await published(store, ref="chat:1")
        await store.claim_file(file.id, "chat:2", now=NOW)
        await store.tell_of_file(file.id, events=[make_event(file.id, "file.corrupt", refs=[], more=1)])
        await store.delete_file(file.id, now=NOW, events=[make_event(file.id, "file.deleted", refs=[])])
        assert [event.data for _, event in await store.events()] == [
            {"refs": ["chat:1", "chat:2"], "more": 1},
            {"refs": ["chat:1", "chat:2"]},
        ]
        assert (await store.refs([file.id]))[file.id] == Refs()

    async def test_a_thousand_references_are_listed_and_all_are_counted(self, store: Store) -> None:
        """What is told of a file stays small however often it is forwarded."""
        file = await published(store)
        await asyncio.gather(*(store.claim_file(file.id, f"r{number:05}", now=NOW) for number in range(MOST_REFS + 7)))
        refs = (await store.refs([file.id]))[file.id]
        assert (refs.count, len(refs.listed)) == (MOST_REFS + 7, MOST_REFS)

    # owners

    async def test_usage_follows_an_upload_to_its_file_and_its_end(self, store: Store) -> None:
        """Reserved from the creation on, then the bytes of a file, then nothing."""
        upload = await put(store, owned(size=700))
        assert await store.usage("backend", "u1") == Usage(pending=1, reserved=700)
        file = await published(store, upload)
        assert await store.usage("backend", "u1") == Usage(files=1, file_bytes=1000)
        await store.end_upload(upload.id, epoch=None, ending=Ending(State.TERMINATED, NOW))
        assert await store.usage("backend", "u1") == Usage(files=1, file_bytes=1000)
        await store.delete_file(file.id, now=NOW)
        await store.delete_file(file.id, now=NOW)
        assert await store.usage("backend", "u1") == Usage()
        assert await store.usage("other", "u1") == Usage()

    async def test_A7_a_quota_refuses_what_would_pass_it(self, store: Store) -> None:
        """To the byte, and to the upload; nothing of the refused one is there, and its link is free."""
        quota = Quota(most_bytes=1000, most_pending=2)
        first = await put(store, owned(size=600), quota=quota)
        late = owned(size=401)
        with pytest.raises(QuotaExceeded):
            await put(store, late, quota=quota, events=[make_event()])
        assert await store.upload(late.id) is None
        assert await store.link_use("backend", late.terms.jti) is None
        assert await store.events() == ()
        await put(store, owned(size=400), quota=quota)
        with pytest.raises(QuotaExceeded):
            await put(store, owned(size=0), quota=quota)
        await put(store, owned("u2", size=1000), quota=quota)
        await put(store, owned(None, size=9000), quota=quota)
        with pytest.raises(QuotaExceeded):
            await put(store, owned("u3", size=1001), quota=quota)
        await store.end_upload(first.id, epoch=None, ending=Ending(State.EXPIRED, NOW))
        await put(store, owned(size=600), quota=quota)

    async def test_A7_a_small_file_counts_as_any(self, store: Store) -> None:
        """One that is recorded in one step is held against the quota, counts for its owner, and has its reference."""
        quota = Quota(most_bytes=1500, most_pending=1)
        upload = owned(state=State.READY, offset=1000)
        file = make_file(upload, owner="u1", ref="r")
        await store.create_ready(upload, use_of(upload), file, quota=quota)
        assert await store.usage("backend", "u1") == Usage(files=1, file_bytes=1000)
        assert (await store.refs([file.id]))[file.id].listed == ("r",)
        late = owned(state=State.READY, offset=1000)
        with pytest.raises(QuotaExceeded):
            await store.create_ready(late, use_of(late), make_file(late, owner="u1"), quota=quota)
        assert await store.upload(late.id) is None
        assert await store.miscounted() == {}

    async def test_A7_two_thousand_reservations_at_once_pass_a_quota_by_no_byte(
        self, store: Store, other: Store
    ) -> None:
        """Of 2,000 creations of 1 to 9 bytes over two stores those are made that fit, and the sum is exact."""
        quota, chance = Quota(most_bytes=5_000), random.Random(7)
        uploads = [owned(size=chance.randrange(1, 10)) for _ in range(2_000)]

        async def attempt(number: int, upload: Upload) -> int:
            with suppress(QuotaExceeded):
                await put((store, other)[number % 2], upload, quota=quota)
                return upload.reserved
            return 0

        taken = await asyncio.gather(*(attempt(number, upload) for number, upload in enumerate(uploads)))
        assert 4_990 < sum(taken) <= 5_000
        usage = await store.usage("backend", "u1")
        assert (usage.reserved, usage.pending) == (sum(taken), sum(map(bool, taken)))
        assert await store.miscounted() == {}

    @pytest.mark.parametrize("seed", range(4))
    async def test_A7_counters_are_what_the_rows_come_to_after_any_walk(
        self, store: Store, other: Store, seed: int
    ) -> None:
        """After each of 200 random ends, files and refusals, over two stores, no owner is miscounted."""
        chance, quota = random.Random(seed), Quota(most_bytes=9_000, most_pending=6)
        open_: list[Upload] = []
        files: list[File] = []
        for _ in range(200):
            here = chance.choice([store, other])
            match chance.choice(["create", "create", "small", "publish", "end", "quarantine", "delete", "release"]):
                case "create":
                    kind = chance.choice([ConcatKind.NONE, ConcatKind.NONE, ConcatKind.PARTIAL])
                    upload = owned(chance.choice(["u1", "u2", None]), chance.randrange(0, 2000), concat_kind=kind)
                    with suppress(QuotaExceeded):
                        open_.append(await put(here, upload, quota=quota))
                case "small":
                    upload = owned(chance.choice(["u1", "u2", None]), state=State.READY, offset=1000)
                    file = make_file(upload, owner=upload.terms.owner, ref=chance.choice([None, "r"]))
                    with suppress(QuotaExceeded):
                        await here.create_ready(upload, use_of(upload), file, quota=quota)
                        files.append(file)
                case "quarantine" if open_:
                    upload = chance.choice(open_)
                    if upload.concat_kind is ConcatKind.NONE:
                        file = make_file(upload, owner=upload.terms.owner)
                        with suppress(Conflict):
                            await here.end_upload(
                                upload.id, epoch=None, ending=Ending(State.FAILED, NOW, quarantined=file)
                            )
                            files.append(file)
                case "publish" if open_:
                    upload = chance.choice(open_)
                    with suppress(Conflict):
                        file = await published(here, upload, ref=chance.choice([None, "r"]))
                        files += [] if upload.concat_kind is ConcatKind.PARTIAL else [file]
                case "end" if open_:
                    state = chance.choice([State.EXPIRED, State.FAILED, State.TERMINATED])
                    with suppress(Conflict):
                        await here.end_upload(chance.choice(open_).id, epoch=None, ending=Ending(state, NOW))
                case "delete" if files:
                    await here.delete_file(chance.choice(files).id, now=NOW)
                case "release" if files:
                    await here.release_file(chance.choice(files).id, "r", now=NOW)
            assert await store.miscounted() == {}
        assert await store.recount() == 0

    # pages

    async def test_files_come_in_pages_by_issuer_owner_and_reference(self, store: Store) -> None:
        """Each file once, none of another issuer and none that is deleted."""
        files = [await published(store, await put(store, owned("u1")), ref=f"r{number % 2}") for number in range(5)]
        theirs = make_upload()
        theirs = theirs.with_(terms=replace(theirs.terms, issuer="other"))
        await published(store, await put(store, theirs), issuer="other")
        unowned = await published(store)
        gone = await published(store, await put(store, owned("u1")))
        await store.delete_file(gone.id, now=NOW)

        async def all_of(**which: Any) -> list[str]:
            found: list[File] = []
            while more := await store.files_of("backend", after=found[-1].id if found else None, limit=2, **which):
                found += more
            return [file.id for file in found]

        assert await all_of(owner="u1") == sorted(file.id for file in files)
        assert await all_of() == sorted([*(file.id for file in files), unowned.id])
        assert await all_of(ref="r1") == sorted(file.id for file in files[1::2])
        assert await all_of(ref="r1", owner="u2") == []
        assert await all_of(ref="r0", owner="u1") == sorted(file.id for file in files[::2])

    async def test_uploads_come_in_pages_by_state(self, store: Store) -> None:
        """Each upload of the state once, with those of equal instants, and none of another issuer."""
        uploads = [await created(store, expires_at=NOW + number // 2) for number in range(5)]
        theirs = make_upload()
        await put(store, theirs.with_(terms=replace(theirs.terms, issuer="other")))
        ended = [uploads.pop() for _ in range(2)]
        for upload in ended:
            await store.end_upload(upload.id, epoch=None, ending=Ending(State.EXPIRED, NOW))

        async def all_in(state: State) -> set[str]:
            found: list[Upload] = []
            last: Upload | None = None
            while more := await store.uploads_in(
                "backend", state, after=(instant_of(last), last.id) if last else None, limit=2
            ):
                found += more
                last = more[-1]
            assert len(found) == len({upload.id for upload in found})
            return {upload.id for upload in found}

        assert await all_in(State.RECEIVING) == {upload.id for upload in uploads}
        assert await all_in(State.EXPIRED) == {upload.id for upload in ended}
        assert await all_in(State.FINISHING) == await all_in(State.READY) == set()

    async def test_open_uploads_of_an_owner(self, store: Store) -> None:
        """Those that have bytes and are no file: receiving, finishing, and whole partials."""
        receiving, whole, part = [await put(store, owned()) for _ in range(2)] + [
            await put(store, owned(concat_kind=ConcatKind.PARTIAL))
        ]
        await published(store, whole)
        await published(store, part)
        await put(store, owned("u2"))
        found = await store.open_uploads_of("backend", "u1", after=None, limit=10)
        assert {upload.id for upload in found} == {receiving.id, part.id}
        assert len(await store.open_uploads_of("backend", "u1", after=found[0].id, limit=10)) == 1

    async def test_what_an_owner_had_is_found_after_its_end(self, store: Store) -> None:
        """Terminated uploads and deleted files, from an instant on, and no others."""
        ends = {NOW: State.TERMINATED, NOW + 1: State.TERMINATED, NOW + 2: State.EXPIRED}
        uploads, files = [], []
        for at, state in ends.items():
            uploads.append(await put(store, owned()))
            await store.end_upload(uploads[-1].id, epoch=None, ending=Ending(state, at))
            files.append(await published(store, await put(store, owned())))
            await store.delete_file(files[-1].id, now=at)
        await published(store, await put(store, owned()))
        await put(store, owned("u2"))
        ended = await store.ended_of("backend", "u1", since=NOW + 1, after=None, limit=10)
        assert [upload.id for upload in ended] == [uploads[1].id]
        deleted = await store.deleted_of("backend", "u1", since=NOW + 1, after=None, limit=10)
        assert [file.id for file in deleted] == sorted(file.id for file in files[1:])
        assert await store.deleted_of("backend", "u1", since=NOW, after=max(f.id for f in files), limit=10) == ()

    # jobs

    async def test_a_job_is_one_for_an_owner_until_it_is_done(self, store: Store, other: Store) -> None:
        """Asked for again it is to erase all up to then, under its first id; what ended before that does not count."""
        revocation = Revocation("backend", "owner", "u1", NOW, NOW + DAY)
        first = await store.begin_job(Job("j_1", "backend", "u1", NOW), revocation)
        again = await other.begin_job(Job("j_2", "backend", "u1", NOW + 5), replace(revocation, issued_before=NOW + 5))
        assert again == replace(first, asked_at=NOW + 5)
        assert [each for _, each in await store.revocations(after=0)] == [
            revocation,
            replace(revocation, issued_before=NOW + 5),
        ]
        await store.end_job(first, now=NOW + 6)
        assert await other.open_jobs(limit=5) == (again,)
        await store.end_job(again, now=NOW + 7)
        assert await store.open_jobs(limit=5) == ()
        assert await store.job("backend", "j_1") == replace(again, done_at=NOW + 7)
        assert await store.job("other", "j_1") is None
        assert (await store.begin_job(Job("j_3", "backend", "u1", NOW + 8), revocation)).id == "j_3"

    # revocations

    async def test_revocations_are_read_from_where_one_was(self, store: Store, other: Store) -> None:
        """The numbers rise, also after old ones were forgotten."""
        first, second = (Revocation("backend", "jti", f"jti-{number}", NOW, NOW + number) for number in (1, 2))
        await store.revoke(first)
        ((seq, found),) = await other.revocations(after=0)
        assert found == first
        assert await other.revocations(after=seq) == ()
        assert await store.forget(requests_before=0, jobs_before=0, now=NOW + 1, limit=10) == 1
        await store.revoke(second)
        ((later, found),) = await other.revocations(after=seq)
        assert found == second
        assert later > seq

    # events

    async def test_the_newest_event_is_known(self, store: Store, other: Store) -> None:
        """Its number, as soon as it is there, whoever wrote it."""
        assert await store.newest_event() == 0
        for _ in range(2):
            await put(other, owned(), events=[make_event()])
        assert await store.newest_event() == (await store.events())[-1][0] == 2

    # repeated requests

    async def test_the_first_of_equal_requests_is_remembered(
        self, store: Store, other: Store, make_store: Callable[[], Awaitable[Store]]
    ) -> None:
        """Whoever comes second gets what the first decided, other words too, until its time is over."""
        first = Repeatable("backend", "k", "d1", NOW, {"jti": "a", "at": 1.5})
        assert await store.remember(first, forget_before=NOW - DAY) == first
        again = Repeatable("backend", "k", "d2", NOW + 1, {"jti": "b"})
        assert await other.remember(again, forget_before=NOW - DAY) == first
        assert await (await make_store()).remember(again, forget_before=NOW - DAY) == first
        theirs = Repeatable("other", "k", "d2", NOW + 1)
        assert await store.remember(theirs, forget_before=NOW - DAY) == theirs
        assert await store.remember(again, forget_before=NOW) == again

    async def test_a_hundred_equal_requests_at_once_are_one(self, store: Store, other: Store) -> None:
        """Each gets the same plan."""
        asked = [Repeatable("backend", "k", "d", NOW, {"number": number}) for number in range(100)]
        got = await asyncio.gather(
            *((store, other)[number % 2].remember(each, forget_before=0) for number, each in enumerate(asked))
        )
        assert len({each.plan["number"] for each in got}) == 1

    async def test_what_is_old_is_forgotten(self, store: Store) -> None:
        """Requests, done jobs and revocations, each after its own time, a few at once."""
        for number in range(3):
            await store.remember(Repeatable("backend", f"k{number}", "d", NOW + number), forget_before=0)
        await store.begin_job(Job("j_1", "backend", "u1", NOW), Revocation("backend", "owner", "u1", NOW, LATER))
        assert await store.forget(requests_before=NOW + 1, jobs_before=LATER, now=NOW, limit=10) == 2
        await store.end_job(Job("j_1", "backend", "u1", NOW), now=NOW + 1)
        assert await store.forget(requests_before=NOW + 1, jobs_before=NOW + 1, now=LATER, limit=10) == 2
        assert await store.job("backend", "j_1") is None
        assert await store.revocations(after=0) == ()
        assert await store.forget(requests_before=LATER, jobs_before=LATER, now=LATER, limit=10) == 1
