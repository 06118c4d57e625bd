"""The storage contract: reading back, completing, concatenating, giving back, health."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from service.clock import new_upload_id
from service.storage.base import Storage, StorageError, StorageShort
from tests.contract.storage_values import (
    ALIGN,
    Ledger,
    StorageHooks,
    appended,
    committed,
    content,
    finished,
    gathered,
    uncommitted,
    unfinished,
)


class StorageReading(StorageHooks):
    """What was committed comes out, as an upload and as a file."""

    # reading back
    @pytest.mark.parametrize(("start", "end"), [(0, 0), (0, 9), (2, 5), (3, 6), (8, 9), (9, 9), (1, 8)])
    async def test_a_range_of_an_unfinished_upload(self, storage: Storage, start: int, end: int) -> None:
        """Bytes [start, end) come back, also across what three requests wrote."""
        upload_id = new_upload_id()
        ledger: Ledger = ()
        for epoch, piece in enumerate((b"abc", b"def", b"ghi"), 1):
            await uncommitted(storage, upload_id, ledger, b"WRONG", epoch=epoch)
            ledger = await appended(storage, upload_id, ledger, piece, epoch=epoch)

        assert await gathered(storage.read_upload(ledger, start, end)) == b"abcdefghi"[start:end]

    @pytest.mark.parametrize("size", [ALIGN - 1, ALIGN, ALIGN + 3])
    async def test_what_follows_the_last_whole_block_can_be_read(self, storage: Storage, size: int) -> None:
        """From the last multiple of the alignment on, what is committed comes back, also after a restart."""
        upload_id, content = new_upload_id(), bytes(range(251)) * (ALIGN // 251 + 1)
        ledger = await appended(storage, upload_id, (), content[: size - 2])
        ledger = await appended(storage, upload_id, ledger, content[size - 2 : size], epoch=2)
        start = size // ALIGN * ALIGN

        assert ledger[-1].end == size
        after = await self.reopened(storage)
        assert await gathered(after.read_upload(ledger, start, size)) == content[start:size]

    async def test_reading_lost_bytes_is_short(self, storage: Storage) -> None:
        """Reading back what was lost raises, and gives no bytes in its place."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        await self.shorten(storage, ledger[-1])

        with pytest.raises(StorageShort):
            await unfinished(storage, ledger)

    async def test_reading_beyond_the_ledger_is_short(self, storage: Storage) -> None:
        """Bytes that the ledger does not name cannot be read through it."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")

        with pytest.raises(StorageShort):
            await gathered(storage.read_upload(ledger, 0, 4))

    # completing
    async def test_complete_gives_the_true_size_and_the_bytes(self, storage: Storage) -> None:
        """The finished file is the ledger's bytes, and its size theirs."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc", last=False)
        ledger = await appended(storage, upload_id, ledger, b"defg", epoch=2, last=True)
        stored = await storage.complete(upload_id, ledger, epoch=2)

        assert (stored.size, await content(storage, stored)) == (7, b"abcdefg")

    @pytest.mark.parametrize("restart", [False, True])
    @pytest.mark.parametrize("data", [b"", b"abc"])
    async def test_complete_again_gives_the_same(self, storage: Storage, restart: bool, data: bytes) -> None:
        """C1: A second complete, also after a restart, answers as the first did and harms nothing."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), data, last=True)
        first = await storage.complete(upload_id, ledger, epoch=1)
        after = await self.reopened(storage) if restart else storage
        second = await after.complete(upload_id, ledger, epoch=2)

        assert first == second
        assert await content(after, second) == data

    async def test_two_completes_at_once_give_the_same(self, storage: Storage) -> None:
        """Two nodes that finish the same upload at once both answer with the whole file."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        await uncommitted(storage, upload_id, ledger, b"WRONG", epoch=2)
        ledger = await appended(storage, upload_id, ledger, b"def", epoch=3)
        answers = await asyncio.gather(
            storage.complete(upload_id, ledger, epoch=4), storage.complete(upload_id, ledger, epoch=5)
        )

        assert [answer.size for answer in answers] == [6, 6]
        assert await content(storage, answers[0]) == b"abcdef"

    async def test_an_empty_ledger_makes_an_empty_file(self, storage: Storage) -> None:
        """An upload of no bytes is a file of no bytes."""
        stored = await storage.complete(new_upload_id(), (), epoch=1)

        assert (stored.size, await content(storage, stored)) == (0, b"")

    async def test_l2_an_empty_ledger_replaces_no_file(self, storage: Storage) -> None:
        """L2: A finisher that comes so late that the ledger is gone leaves the file as it is."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc", last=True)
        stored = await storage.complete(upload_id, ledger, epoch=1)
        with suppress(StorageError):
            await storage.complete(upload_id, (), epoch=2)

        assert await content(storage, stored) == b"abc"

    async def test_complete_of_lost_bytes_is_short(self, storage: Storage) -> None:
        """O1: A ledger that storage cannot back makes no file."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        await self.shorten(storage, ledger[-1])

        with pytest.raises(StorageShort):
            await storage.complete(upload_id, ledger, epoch=2)

    async def test_complete_of_nothing_held_is_short(self, storage: Storage) -> None:
        """C2: Parts that vanished are an error, never taken for a finished upload."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        await storage.discard(upload_id)

        with pytest.raises(StorageShort):
            await storage.complete(upload_id, ledger, epoch=2)

    # concatenating
    async def three(self, storage: Storage) -> list[Ledger]:
        """Three partial uploads, the middle one made of several requests."""
        ledgers = []
        for pieces in ((b"abc",), (b"d", b"ef"), (b"g",)):
            upload_id = new_upload_id()
            ledger: Ledger = ()
            for epoch, piece in enumerate(pieces, 1):
                await uncommitted(storage, upload_id, ledger, b"WRONG", epoch=epoch)
                ledger = await appended(storage, upload_id, ledger, piece, epoch=epoch)
            ledgers.append(ledger)
        return ledgers

    async def test_t_0c3_sources_are_joined_in_the_order_listed(self, storage: Storage) -> None:
        """T-0C3: The listed order counts, and a source may repeat."""
        one, two, three = await self.three(storage)
        upload_id = new_upload_id()
        ledger = committed((), await storage.concatenate(upload_id, [three, one, two, one], epoch=1))
        stored = await storage.complete(upload_id, ledger, epoch=1)

        assert await content(storage, stored) == b"gabcdefabc"

    async def test_sources_stay_as_they_are(self, storage: Storage) -> None:
        """T-0CF: After the joined file is finished the sources read as before, and serve again."""
        sources = await self.three(storage)
        for _ in range(2):
            upload_id = new_upload_id()
            ledger = committed((), await storage.concatenate(upload_id, sources, epoch=1))
            stored = await storage.complete(upload_id, ledger, epoch=1)
            assert await content(storage, stored) == b"abcdefg"

        assert [await unfinished(storage, ledger) for ledger in sources] == [b"abc", b"def", b"g"]

    async def test_concatenate_again_gives_the_same(self, storage: Storage) -> None:
        """C5: Joined again after a restart, before and after its commit, the bytes are the same."""
        sources = await self.three(storage)
        upload_id = new_upload_id()
        first = await storage.concatenate(upload_id, sources, epoch=1)
        after = await self.reopened(storage)
        second = await after.concatenate(upload_id, sources, epoch=2)

        assert await unfinished(after, committed((), first)) == b"abcdefg"
        await after.drop(upload_id, second.drop)
        assert await unfinished(after, committed((), second)) == b"abcdefg"

    async def test_a_late_concatenate_changes_nothing(self, storage: Storage) -> None:
        """L2: One that was overtaken leaves the newer one's bytes, also when it drops what it named."""
        sources = await self.three(storage)
        upload_id = new_upload_id()
        ledger = committed((), await storage.concatenate(upload_id, sources, epoch=2))
        late = await storage.concatenate(upload_id, sources[:1], epoch=1)
        await storage.drop(upload_id, late.drop)

        assert await unfinished(storage, ledger) == b"abcdefg"

    async def test_nothing_joined_is_nothing(self, storage: Storage) -> None:
        """Sources without bytes make an empty upload."""
        upload_id = new_upload_id()
        ledger = committed((), await storage.concatenate(upload_id, [(), ()], epoch=1))

        assert ledger == ()

    async def test_concatenate_of_lost_bytes_is_short(self, storage: Storage) -> None:
        """A source that storage cannot back makes no concatenation."""
        sources = await self.three(storage)
        await self.shorten(storage, sources[1][-1])

        with pytest.raises(StorageShort):
            await storage.concatenate(new_upload_id(), sources, epoch=1)

    # giving back
    async def test_discard_takes_what_is_unfinished(self, storage: Storage) -> None:
        """After discard nothing of the upload can be read; a second one is no error."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        await storage.discard(upload_id)
        await storage.discard(upload_id)

        with pytest.raises(StorageShort):
            await unfinished(storage, ledger)

    async def test_discard_of_what_never_was_is_no_error(self, storage: Storage) -> None:
        """An upload that stored nothing can be discarded."""
        await storage.discard(new_upload_id())

    async def test_discard_spares_the_finished_file(self, storage: Storage) -> None:
        """A finished file stays when its upload is discarded."""
        upload_id = new_upload_id()
        stored = await finished(storage, b"abc", upload_id)
        await storage.discard(upload_id)

        assert await content(storage, stored) == b"abc"

    async def test_discard_spares_other_uploads(self, storage: Storage) -> None:
        """Only the named upload loses its bytes."""
        one, two = new_upload_id(), new_upload_id()
        await appended(storage, one, (), b"abc")
        ledger = await appended(storage, two, (), b"def")
        await storage.discard(one)

        assert await unfinished(storage, ledger) == b"def"

    async def test_drop_again_is_no_error(self, storage: Storage) -> None:
        """Keys that are gone can be dropped again."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        keys = [part.key for part in ledger]
        await storage.drop(upload_id, keys)
        await storage.drop(upload_id, keys)

        with pytest.raises(StorageShort):
            await unfinished(storage, ledger)

    async def test_delete_takes_the_file(self, storage: Storage) -> None:
        """A deleted file cannot be opened; deleting it again is no error."""
        stored = await finished(storage, b"abc")
        await storage.delete(stored.key)
        await storage.delete(stored.key)

        with pytest.raises(StorageShort):
            async with storage.open_file(stored.key):
                pass

    # finished files
    @pytest.mark.parametrize(("start", "end"), [(0, 0), (0, 6), (2, 5), (5, 6), (6, 6)])
    async def test_a_range_of_a_finished_file(self, storage: Storage, start: int, end: int) -> None:
        """Bytes [start, end) of the file come back."""
        stored = await finished(storage, b"abcdef")
        async with storage.open_file(stored.key) as file:
            assert await gathered(file.read(start, end)) == b"abcdef"[start:end]

    async def test_two_readers_of_one_open_file_do_not_disturb_each_other(self, storage: Storage) -> None:
        """Two reads of the same open file, interleaved, each give their own range."""
        data = bytes(range(256)) * 16384
        stored = await finished(storage, data)
        async with storage.open_file(stored.key) as file:
            one, two = await asyncio.gather(gathered(file.read(0, len(data))), gathered(file.read(1000, len(data) - 1)))

        assert one == data
        assert two == data[1000:-1]

    async def test_a_file_that_is_not_there_is_short(self, storage: Storage) -> None:
        """Opening an unknown key is a permanent error."""
        stored = await finished(storage, b"abc")
        await storage.delete(stored.key)

        with pytest.raises(StorageShort):
            async with storage.open_file(stored.key):
                pass

    async def test_a_signed_url_is_one_or_nothing(self, storage: Storage) -> None:
        """A store that can be asked by everybody gives a URL of its own, any other None."""
        stored = await finished(storage, b"abc")
        url = await storage.signed_url(stored.key, seconds=60, content_type="text/plain", disposition="attachment")

        assert url is None or url.startswith(("http://", "https://"))

    # health
    async def test_a_store_in_order_passes_its_probe(self, storage: Storage) -> None:
        """The probe returns, and leaves uploads alone."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        await storage.probe()

        assert await unfinished(storage, ledger) == b"abc"

    async def test_free_bytes_is_a_count_or_nothing(self, storage: Storage) -> None:
        """Free space is a number of bytes, or None where that means nothing."""
        free = await storage.free_bytes()

        assert free is None or free >= 0

    def test_it_names_itself(self, storage: Storage) -> None:
        """The metric label is a short lower-case word."""
        assert storage.name.isalnum()
        assert storage.name == storage.name.lower()
