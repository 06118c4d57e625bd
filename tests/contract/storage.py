"""The Storage port's contract as a suite: every adapter's test subclasses StorageContract.

A subclass provides the fixture `storage` (an opened adapter), and says how the same store is opened
anew and how bytes are lost behind its back. Files named test_*.py collect it, this one is a base.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence

import pytest

from service.clock import new_upload_id
from service.model import Part, UploadId
from service.storage.base import Receipt, Storage, StorageError, StorageShort, Stored

Ledger = tuple[Part, ...]


def committed(ledger: Sequence[Part], receipt: Receipt) -> Ledger:
    """The ledger once the receipt is committed, held against what the port says of both."""
    parts = {part.number: part for part in ledger} | {part.number: part for part in receipt.parts}
    merged = tuple(parts[number] for number in sorted(parts))
    reached = 0
    for part in merged:
        assert part.start == reached, "a ledger has no gaps"
        assert part.end > part.start, "a part has bytes"
        reached = part.end
    assert reached == receipt.offset, "a receipt's offset is the end of its ledger"
    return merged


async def appended(
    storage: Storage, upload_id: UploadId, ledger: Ledger, *pieces: bytes, epoch: int = 1, last: bool = False
) -> Ledger:
    """The ledger after one request that wrote the pieces and committed them."""
    async with storage.append(upload_id, ledger, epoch=epoch) as appender:
        for piece in pieces:
            await appender.write(memoryview(piece))
        receipt = await appender.flush(last=last)
    await storage.drop(upload_id, receipt.drop)
    return committed(ledger, receipt)


async def uncommitted(storage: Storage, upload_id: UploadId, ledger: Ledger, data: bytes, *, epoch: int = 1) -> Receipt:
    """A request that was held and never committed."""
    async with storage.append(upload_id, ledger, epoch=epoch) as appender:
        await appender.write(memoryview(data))
        return await appender.flush(last=False)


async def gathered(pieces: AsyncIterator[bytes]) -> bytes:
    """All pieces as one."""
    return b"".join([piece async for piece in pieces])


async def unfinished(storage: Storage, ledger: Ledger) -> bytes:
    """What the ledger reads."""
    return await gathered(storage.read_upload(ledger, 0, ledger[-1].end if ledger else 0))


async def content(storage: Storage, stored: Stored) -> bytes:
    """What the finished file reads; its size agrees with the receipt for it."""
    async with storage.open_file(stored.key) as file:
        assert file.size == stored.size
        return await gathered(file.read(0, file.size))


async def finished(storage: Storage, data: bytes) -> Stored:
    """A finished file of a new upload with those bytes."""
    upload_id = new_upload_id()
    ledger = await appended(storage, upload_id, (), data, last=True)
    return await storage.complete(upload_id, ledger, epoch=1)


class StorageContract(ABC):
    """What every adapter holds to, sentence by sentence of `storage/base.py`."""

    @abstractmethod
    async def reopened(self, storage: Storage) -> Storage:
        """Another, opened instance on the same store, as after a restart. The subclass closes it."""

    @abstractmethod
    async def shorten(self, storage: Storage, part: Part) -> None:
        """The last byte of the part is lost behind the adapter's back."""

    # appending
    async def test_bytes_follow_the_ledger(self, storage: Storage) -> None:
        """The first byte of an append follows the last one of the ledger."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc", b"de")
        ledger = await appended(storage, upload_id, ledger, b"fgh", epoch=2)

        assert ledger[-1].end == 8
        assert await unfinished(storage, ledger) == b"abcdefgh"

    async def test_a_resume_goes_on_after_a_restart(self, storage: Storage) -> None:
        """A new instance appends where the ledger of the old one ends."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        again = await self.reopened(storage)
        ledger = await appended(again, upload_id, ledger, b"def", epoch=2)

        assert await unfinished(again, ledger) == b"abcdef"

    async def test_a_part_carries_the_epoch_of_its_writer(self, storage: Storage) -> None:
        """The ledger entry that a receipt changes has the epoch of the append."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc", epoch=4)
        ledger = await appended(storage, upload_id, ledger, b"def", epoch=9)

        assert ledger[-1].epoch == 9

    async def test_nothing_written_is_a_receipt_of_nothing(self, storage: Storage) -> None:
        """A body of no bytes gives the committed offset and no parts."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        async with storage.append(upload_id, ledger, epoch=2) as appender:
            await appender.write(memoryview(b""))

            assert await appender.flush(last=True) == Receipt(3)

    @pytest.mark.parametrize("restart", [False, True])
    async def test_uncommitted_bytes_are_replaced(self, storage: Storage, restart: bool) -> None:
        """T-0A9: An append that was never committed is replaced by the next one at the same offset."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        await uncommitted(storage, upload_id, ledger, b"WRONGWRONG", epoch=2)
        after = await self.reopened(storage) if restart else storage
        ledger = await appended(after, upload_id, ledger, b"def", epoch=3)
        stored = await after.complete(upload_id, ledger, epoch=3)

        assert await content(after, stored) == b"abcdef"

    async def test_uncommitted_bytes_of_a_first_request_are_replaced(self, storage: Storage) -> None:
        """An upload that never committed a byte begins anew."""
        upload_id = new_upload_id()
        await uncommitted(storage, upload_id, (), b"WRONGWRONG", epoch=1)
        ledger = await appended(storage, upload_id, (), b"right", epoch=2)
        stored = await storage.complete(upload_id, ledger, epoch=2)

        assert await content(storage, stored) == b"right"

    async def test_uncommitted_bytes_are_no_part_of_the_file(self, storage: Storage) -> None:
        """Bytes that nobody committed are not in the file that ends before them."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        await uncommitted(storage, upload_id, ledger, b"WRONG", epoch=2)
        stored = await storage.complete(upload_id, ledger, epoch=3)

        assert (stored.size, await content(storage, stored)) == (3, b"abc")

    async def test_uncommitted_bytes_are_replaced_in_the_same_epoch(self, storage: Storage) -> None:
        """A second request under the same lease replaces what the first did not commit."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        await uncommitted(storage, upload_id, ledger, b"WRONG")
        ledger = await appended(storage, upload_id, ledger, b"def")

        assert await unfinished(storage, ledger) == b"abcdef"

    async def test_held_tells_what_can_be_committed_on_the_way(self, storage: Storage) -> None:
        """A receipt taken between two writes reads as what was written until then."""
        upload_id = new_upload_id()
        async with storage.append(upload_id, (), epoch=1) as appender:
            await appender.write(memoryview(b"abc"))
            early = await appender.held()
            await appender.write(memoryview(b"def"))
            late = await appender.flush(last=True)
        ledger = committed((), early)

        assert await unfinished(storage, ledger) == b"abcdef"[: early.offset]
        assert await unfinished(storage, committed(ledger, late)) == b"abcdef"

    async def test_the_buffer_may_be_reused_after_a_write(self, storage: Storage) -> None:
        """Changing the buffer once write has returned changes nothing that is held."""
        upload_id = new_upload_id()
        buffer = bytearray(b"abc")
        async with storage.append(upload_id, (), epoch=1) as appender:
            await appender.write(memoryview(buffer))
            buffer[:] = b"XYZ"
            await appender.write(memoryview(buffer))
            ledger = committed((), await appender.flush(last=True))

        assert await unfinished(storage, ledger) == b"abcXYZ"

    async def test_the_observer_sees_every_byte_once_in_order(self, storage: Storage) -> None:
        """What the observer saw is what was written, and neither what came before nor more."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"before")
        seen: list[bytes] = []
        async with storage.append(
            upload_id, ledger, epoch=2, observe=lambda data: seen.append(bytes(data))
        ) as appender:
            for piece in (b"a", b"bc", b"", b"def"):
                await appender.write(memoryview(piece))
            await appender.flush(last=False)

        assert b"".join(seen) == b"abcdef"

    async def test_an_append_to_lost_bytes_is_short(self, storage: Storage) -> None:
        """Fewer bytes than the ledger says are an error at once, and a permanent one."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        await self.shorten(storage, ledger[-1])

        with pytest.raises(StorageShort) as caught:
            await appended(storage, upload_id, ledger, b"def", epoch=2)
        assert caught.value.permanent

    async def test_an_error_inside_the_context_keeps_what_was_committed(self, storage: Storage) -> None:
        """An append that ends in an exception leaves a receipt taken before it true."""
        upload_id = new_upload_id()
        receipts: list[Receipt] = []

        async def fail() -> None:
            async with storage.append(upload_id, (), epoch=1) as appender:
                await appender.write(memoryview(b"abc"))
                receipts.append(await appender.flush(last=False))
                await appender.write(memoryview(b"lost"))
                raise RuntimeError

        with pytest.raises(RuntimeError):
            await fail()

        assert await unfinished(storage, committed((), receipts[0])) == b"abc"

    # one writer
    async def test_a_writer_that_was_asleep_changes_nothing_readable(self, storage: Storage) -> None:
        """L2: What an overtaken writer writes with its append still open is never in the file."""
        upload_id = new_upload_id()
        async with storage.append(upload_id, (), epoch=1) as asleep:
            await asleep.write(memoryview(b"abc"))
            ledger = committed((), await asleep.flush(last=False))
            ledger = await appended(storage, upload_id, ledger, b"def", epoch=2)
            with_stale = asyncio.ensure_future(asleep.write(memoryview(b"WRONGWRONG")))
            await asyncio.wait({with_stale})
            ledger = await appended(storage, upload_id, ledger, b"ghi", epoch=3)

            assert with_stale.exception() is None or isinstance(with_stale.exception(), StorageError)
            assert await unfinished(storage, ledger) == b"abcdefghi"
        stored = await storage.complete(upload_id, ledger, epoch=4)

        assert await content(storage, stored) == b"abcdefghi"

    async def test_a_writer_asleep_since_before_the_end_changes_no_file(self, storage: Storage) -> None:
        """L2: What an overtaken writer writes after the upload was finished is not in the file."""
        upload_id = new_upload_id()
        async with storage.append(upload_id, (), epoch=1) as asleep:
            await asleep.write(memoryview(b"abc"))
            ledger = committed((), await asleep.flush(last=False))
            stored = await storage.complete(upload_id, ledger, epoch=2)
            with_stale = asyncio.ensure_future(asleep.write(memoryview(b"WRONG")))
            await asyncio.wait({with_stale})

        assert await content(storage, stored) == b"abc"

    async def test_a_writer_that_comes_late_with_an_old_ledger_changes_nothing(self, storage: Storage) -> None:
        """L2: An append that begins with a ledger from before a newer writer's commit is not readable."""
        upload_id = new_upload_id()
        old = await appended(storage, upload_id, (), b"abc", epoch=1)
        new = await appended(storage, upload_id, old, b"def", epoch=3)
        await uncommitted(storage, upload_id, old, b"WRONGWRONG", epoch=2)

        assert await unfinished(storage, new) == b"abcdef"
        stored = await storage.complete(upload_id, new, epoch=4)
        assert await content(storage, stored) == b"abcdef"

    async def test_a_first_writer_that_comes_late_changes_nothing(self, storage: Storage) -> None:
        """L2: An append that begins with the empty ledger after a newer writer's commit is not readable."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc", epoch=2)
        await uncommitted(storage, upload_id, (), b"WRONGWRONG", epoch=1)

        assert await unfinished(storage, ledger) == b"abc"

    async def test_two_uploads_do_not_mix(self, storage: Storage) -> None:
        """Two appends at once, write by write, keep their bytes apart."""
        one, two = new_upload_id(), new_upload_id()
        async with storage.append(one, (), epoch=1) as first, storage.append(two, (), epoch=1) as second:
            for piece in (b"1", b"2", b"3"):
                await asyncio.gather(first.write(memoryview(piece)), second.write(memoryview(b"x" + piece)))
            ones = committed((), await first.flush(last=True))
            twos = committed((), await second.flush(last=True))

        assert (await unfinished(storage, ones), await unfinished(storage, twos)) == (b"123", b"x1x2x3")

    # cancellation
    async def test_a_write_that_is_cancelled_leaves_held_right(self, storage: Storage) -> None:
        """After a cancellation inside a write, the receipt reads as a prefix of what was given."""
        upload_id = new_upload_id()
        begun, go = threading.Event(), threading.Event()

        def observe(_: memoryview) -> None:
            begun.set()
            go.wait(10)

        async with storage.append(upload_id, (), epoch=1, observe=observe) as appender:
            writing = asyncio.ensure_future(appender.write(memoryview(b"abcdef")))
            # an adapter that writes on the loop has no thread to be waited for
            await asyncio.to_thread(begun.wait, 10)
            writing.cancel()
            go.set()
            await asyncio.wait({writing})
            receipt = await appender.flush(last=False)
        ledger = committed((), receipt)

        assert writing.cancelled()
        assert await unfinished(storage, ledger) == b"abcdef"[: receipt.offset]

    async def test_a_cancelled_append_can_be_made_again(self, storage: Storage) -> None:
        """A request cancelled with its append open leaves nothing that stops the next one."""
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        inside = asyncio.Event()

        async def hang() -> None:
            async with storage.append(upload_id, ledger, epoch=2) as appender:
                await appender.write(memoryview(b"WRONG"))
                inside.set()
                await asyncio.Event().wait()

        hanging = asyncio.ensure_future(hang())
        await inside.wait()
        hanging.cancel()
        await asyncio.wait({hanging})
        ledger = await appended(storage, upload_id, ledger, b"def", epoch=3)

        assert await unfinished(storage, ledger) == b"abcdef"

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
        stored = await finished(storage, b"abc")
        await storage.discard(UploadId(stored.key.rpartition("/")[2]))

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
