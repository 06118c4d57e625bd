"""The suite's part on how far the ledger of an unfinished upload is backed."""

from __future__ import annotations

import random

from service.clock import new_upload_id
from service.storage.base import Backing, Storage
from tests.contract.storage_listing import HOUR, listed
from tests.contract.storage_values import ALIGN, StorageHooks, appended, uncommitted

#: more than one piece of whatever an adapter stores
LARGE = random.Random(1).randbytes(2 * ALIGN + 5)


class StorageExamining(StorageHooks):
    """What `examine` tells."""

    async def test_an_empty_ledger_is_backed(self, storage: Storage) -> None:
        """Nothing is needed for it, and nothing there."""
        assert await storage.examine(new_upload_id(), (), older_than=HOUR) == Backing(0)

    async def test_what_was_committed_is_backed(self, storage: Storage) -> None:
        """A ledger of several requests is backed to its end, which a second look, or one after a restart, tells too."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), LARGE, b"abc")
        ledger = await appended(storage, upload_id, ledger, b"def", epoch=2)
        before = await listed(storage)
        for looked_at in (storage, storage, await self.reopened(storage)):
            assert (await looked_at.examine(upload_id, ledger, older_than=HOUR)).backed == len(LARGE) + 6
        assert await listed(storage) == before

    async def test_c7_a_ledger_that_names_more_than_there_is_is_not_backed(self, storage: Storage) -> None:
        """C7: where a byte of the last piece is missing, what is backed ends within it."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), LARGE)
        ledger = await appended(storage, upload_id, ledger, b"def", epoch=2)
        await self.shorten(storage, ledger[-1])
        backed = (await storage.examine(upload_id, ledger, older_than=HOUR)).backed
        assert ledger[-1].start <= backed < ledger[-1].end

    async def test_c7_a_ledger_whose_bytes_are_gone_is_not_backed(self, storage: Storage) -> None:
        """C7: nothing is, where all was removed."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), LARGE)
        await storage.discard(upload_id)
        assert await storage.examine(upload_id, ledger, older_than=HOUR) == Backing(0)

    async def test_a_file_that_was_not_recorded_backs_its_ledger(self, storage: Storage) -> None:
        """Between `complete` and the record of it nothing is missing."""
        for content in (b"abc", LARGE):
            upload_id = new_upload_id()
            ledger = await appended(storage, upload_id, (), content)
            await storage.complete(upload_id, ledger, epoch=1)
            assert (await storage.examine(upload_id, ledger, older_than=HOUR)).backed == len(content)

    async def test_sources_stay_backed_when_they_were_joined(self, storage: Storage) -> None:
        """Whatever form joining gave their bytes."""
        one, two = new_upload_id(), new_upload_id()
        ledgers = [await appended(storage, one, (), LARGE), await appended(storage, two, (), b"abc")]
        final = new_upload_id()
        receipt = await storage.concatenate(final, ledgers, epoch=1)
        await storage.complete(final, receipt.parts, epoch=1)
        for upload_id, ledger in zip((one, two), ledgers, strict=True):
            assert (await storage.examine(upload_id, ledger, older_than=HOUR)).backed == ledger[-1].end

    async def test_uncommitted_bytes_back_nothing(self, storage: Storage) -> None:
        """What no ledger names makes none longer."""
        upload_id = new_upload_id()
        await uncommitted(storage, upload_id, (), b"abc")
        assert (await storage.examine(upload_id, (), older_than=HOUR)).backed == 0
