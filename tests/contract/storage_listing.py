"""The suite's part on what is held: how it is listed, and how all of an upload goes."""

from __future__ import annotations

from service.clock import new_upload_id
from service.storage.base import Held, Storage
from tests.contract.storage_values import StorageHooks, appended, finished, uncommitted, unfinished

HOUR = 3600.0


async def listed(storage: Storage, older_than: float = -HOUR) -> set[Held]:
    """Everything that is listed, each thing once."""
    found = [held async for held in storage.held(older_than=older_than)]
    assert len(set(found)) == len(found)
    return set(found)


class StorageListing(StorageHooks):
    """What `held` lists."""

    async def test_nothing_is_listed_of_an_empty_store(self, storage: Storage) -> None:
        """A store that was never written to holds nothing."""
        assert await listed(storage) == set()

    async def test_what_is_held_is_listed_once_with_its_size(self, storage: Storage) -> None:
        """Unfinished bytes, committed or not, are one entry without a key; a finished file has its key."""
        one, two = new_upload_id(), new_upload_id()
        ledger = await appended(storage, one, (), b"abc")
        await uncommitted(storage, one, ledger, b"WRONG", epoch=2)
        await appended(storage, one, ledger, b"def", epoch=3)
        await uncommitted(storage, two, (), b"abcd")
        three = new_upload_id()
        stored = await finished(storage, b"abcde", three)
        found = await listed(storage)

        names = [self.name_of(upload_id) for upload_id in (one, two, three)]
        keys: list[str | None] = [None, None, stored.key]
        assert {(held.name, held.key) for held in found} == set(zip(names, keys, strict=True))
        sizes = {held.name: held.size for held in found}
        assert sizes[names[0]] >= 6
        assert sizes[names[1]] >= 4
        assert sizes[names[2]] == 5

    async def test_what_went_is_not_listed(self, storage: Storage) -> None:
        """Discarded uploads and deleted files are not listed, nor what a finished upload was made of."""
        upload_id = new_upload_id()
        await appended(storage, upload_id, (), b"abc")
        kept, gone = await finished(storage, b"abcde"), await finished(storage, b"")
        await storage.discard(upload_id)
        await storage.delete(gone.key)

        assert {held.key for held in await listed(storage)} == {kept.key}

    async def test_a_concatenation_that_no_record_names_is_listed(self, storage: Storage) -> None:
        """Joined bytes are their upload's, beside those of the sources."""
        one, two = new_upload_id(), new_upload_id()
        ledger = await appended(storage, one, (), b"abc")
        await storage.concatenate(two, [ledger, ledger], epoch=1)

        assert {held.name for held in await listed(storage)} == {self.name_of(one), self.name_of(two)}

    async def test_the_young_are_not_listed(self, storage: Storage) -> None:
        """What was changed within the time given is left out, an upload already for one young byte."""
        old, resumed = new_upload_id(), new_upload_id()
        await appended(storage, old, (), b"abc")
        ledger = await appended(storage, resumed, (), b"abc")
        await uncommitted(storage, resumed, ledger, b"WRONG", epoch=2)
        stored = await finished(storage, b"abcde")
        await self.age(storage, 2 * HOUR)
        await appended(storage, resumed, ledger, b"def", epoch=3)
        await appended(storage, new_upload_id(), (), b"abc")
        await finished(storage, b"abcde")

        assert {held.key or held.name for held in await listed(storage, HOUR)} == {self.name_of(old), stored.key}
        assert await listed(storage, 3 * HOUR) == set()

    async def test_what_is_listed_can_be_removed_meanwhile(self, storage: Storage) -> None:
        """Removing each entry as it comes empties the store."""
        for _ in range(10):
            await appended(storage, new_upload_id(), (), b"abc")
            await finished(storage, b"abcde")
        async for held in storage.held(older_than=-HOUR):
            await (storage.discard(held.name) if held.key is None else storage.delete(held.key))

        assert await listed(storage) == set()

    # names
    async def test_a_name_is_the_beginning_of_one_upload_id(self, storage: Storage) -> None:
        """What is held of an upload, unfinished or finished, goes by one prefix of its id of 15 characters or more."""
        one, two = new_upload_id(), new_upload_id()
        await appended(storage, one, (), b"abc")
        await finished(storage, b"abcde", two)
        names = {held.name for held in await listed(storage)}

        assert all(len(name) >= 15 for name in names)
        assert [[name for name in names if upload_id.startswith(name)] for upload_id in (one, two)] == [
            [self.name_of(one)],
            [self.name_of(two)],
        ]

    async def test_discard_takes_a_name_for_an_id(self, storage: Storage) -> None:
        """All of an upload goes by its name as by its id, and nothing of another."""
        one, two = new_upload_id(), new_upload_id()
        await appended(storage, one, (), b"abc")
        ledger = await appended(storage, two, (), b"def")
        await storage.discard(self.name_of(one))

        assert {held.name for held in await listed(storage)} == {self.name_of(two)}
        assert await unfinished(storage, ledger) == b"def"

    # discard of all
    async def test_a_finished_file_goes_without_its_key(self, storage: Storage) -> None:
        """Asked for all, discard leaves neither unfinished bytes nor the file that `complete` made; twice is fine."""
        upload_id, other = new_upload_id(), await finished(storage, b"other")
        ledger = await appended(storage, upload_id, (), b"abc")
        await storage.complete(upload_id, ledger, epoch=1)
        await uncommitted(storage, upload_id, (), b"LATE", epoch=2)
        for _ in range(2):
            await storage.discard(upload_id, finished=True)

        assert {held.key for held in await listed(storage)} == {other.key}
