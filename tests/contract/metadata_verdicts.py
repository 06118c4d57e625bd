"""The contract of MetadataStore: what a scanner said of a file, and files that nobody gets."""

from __future__ import annotations

import pytest

from service.metadata.base import Conflict, Ending, MetadataStore
from service.model import State, Verdict
from tests.contract.metadata_values import NOW, finishing, make_event, make_file


class VerdictContract:
    """Verdicts are kept with the file; a quarantined file comes with the end of its upload."""

    @pytest.mark.parametrize("verdict", Verdict)
    async def test_a_verdict_comes_back(self, store: MetadataStore, verdict: Verdict) -> None:
        """Each verdict is read as it was written."""
        upload, lease = await finishing(store)
        file = make_file(upload, verdict=verdict)
        await store.publish(upload.id, epoch=lease.epoch, file=file, events=(), now=NOW)
        assert await store.file(file.id) == file

    async def test_a_quarantined_file_comes_with_the_end(self, store: MetadataStore) -> None:
        """The upload failed, the file is known and its bytes are needed, both are told, all in one."""
        upload, lease = await finishing(store)
        file = make_file(upload, verdict=Verdict.INFECTED)
        told = [make_event(upload.id, "upload.failed"), make_event(file.id, "file.infected")]
        ending = Ending(State.FAILED, NOW + 3, "infected", "why", events=told, quarantined=file)
        ended = await store.end_upload(upload.id, epoch=lease.epoch, ending=ending)
        assert (ended.state, ended.problem) == (State.FAILED, "infected")
        assert await store.file(file.id) == file
        assert await store.file_keys(limit=10) == ((file.id, file.key, False),)
        assert [event for _, event in await store.events()] == told
        assert await store.ledger(upload.id) == ()

    async def test_an_end_that_came_too_late_keeps_no_file(self, store: MetadataStore) -> None:
        """Whoever lost the lease while a scan ran makes no file and tells nothing."""
        upload, lease = await finishing(store)
        await store.acquire_lease(upload.id, "node.2", now=NOW + 11, until=NOW + 21)
        ending = Ending(State.FAILED, NOW + 12, "infected", events=[make_event()], quarantined=make_file(upload))
        with pytest.raises(Conflict):
            await store.end_upload(upload.id, epoch=lease.epoch, ending=ending)
        assert await store.file(upload.file_id) is None
        assert await store.events() == ()

    async def test_a_quarantined_file_outlives_its_upload(self, store: MetadataStore) -> None:
        """The upload is forgotten in time; the file stays until it is deleted or expires."""
        upload, lease = await finishing(store)
        file = make_file(upload, verdict=Verdict.INFECTED, expires_at=NOW + 100)
        ending = Ending(State.FAILED, NOW, "infected", quarantined=file)
        await store.end_upload(upload.id, epoch=lease.epoch, ending=ending)
        await store.purge(before=NOW + 50, link_before=NOW, limit=10)
        assert await store.upload(upload.id) is None
        assert await store.file(file.id) == file
        assert await store.expired_files(now=NOW + 101, limit=10) == (file,)
