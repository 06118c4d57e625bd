"""The storage contract: appending, one writer, cancellation."""

from __future__ import annotations

import asyncio
import threading

import pytest

from service.clock import new_upload_id
from service.storage.base import Receipt, Storage, StorageError, StorageShort, StorageStale
from tests.contract.storage_values import (
    ALIGN,
    StorageHooks,
    appended,
    committed,
    content,
    uncommitted,
    unfinished,
)


class StorageWriting(StorageHooks):
    """Bytes go in, and only those of the rightful writer count."""

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
        async with storage.append(upload_id, ledger, epoch=2, align=ALIGN) as appender:
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

    async def test_a_ledger_that_is_synced_reads_and_goes_on_as_before(self, storage: Storage) -> None:
        """A sync changes no byte, and stands in the way of no append."""
        upload_id = new_upload_id()
        await storage.sync(())
        ledger = await appended(storage, upload_id, (), b"abc")
        await storage.sync(ledger)
        assert await unfinished(storage, ledger) == b"abc"
        ledger = await appended(storage, upload_id, ledger, b"def", epoch=2)
        await storage.sync(ledger)

        assert await unfinished(storage, ledger) == b"abcdef"

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
        async with storage.append(upload_id, (), epoch=1, align=ALIGN) as appender:
            await appender.write(memoryview(b"abc"))
            early = await appender.held()
            await appender.write(memoryview(b"def"))
            late = await appender.flush(last=True)
        ledger = committed((), early)

        assert await unfinished(storage, ledger) == b"abcdef"[: early.offset]
        assert await unfinished(storage, committed(ledger, late)) == b"abcdef"

    async def test_a_receipt_tells_all_since_the_append_began(self, storage: Storage) -> None:
        """The last receipt alone makes the ledger that all of them make one after the other."""
        upload_id = new_upload_id()
        before = await appended(storage, upload_id, (), b"abc")
        ledger = before
        async with storage.append(upload_id, before, epoch=2, align=ALIGN) as appender:
            for piece in (b"def", b"ghi"):
                await appender.write(memoryview(piece))
                ledger = committed(ledger, await appender.held())
                ledger = committed(ledger, await appender.flush(last=False))
            last = await appender.flush(last=True)

        assert committed(before, last) == committed(ledger, last)
        assert await unfinished(storage, committed(before, last)) == b"abcdefghi"

    async def test_the_buffer_may_be_reused_after_a_write(self, storage: Storage) -> None:
        """Changing the buffer once write has returned changes nothing that is held."""
        upload_id = new_upload_id()
        buffer = bytearray(b"abc")
        async with storage.append(upload_id, (), epoch=1, align=ALIGN) as appender:
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
            upload_id, ledger, epoch=2, align=ALIGN, observe=lambda data: seen.append(bytes(data))
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
            async with storage.append(upload_id, (), epoch=1, align=ALIGN) as appender:
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
        async with storage.append(upload_id, (), epoch=1, align=ALIGN) as asleep:
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
        async with storage.append(upload_id, (), epoch=1, align=ALIGN) as asleep:
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

    async def test_a_writer_whose_fence_falls_writes_nothing(self, storage: Storage) -> None:
        """L2: An append whose lease was lost by the time it has the place raises StorageStale before the first byte."""
        upload_id = new_upload_id()
        old = await appended(storage, upload_id, (), b"abc", epoch=1)
        new = await appended(storage, upload_id, old, b"def", epoch=3)

        async def fallen() -> None:
            raise StorageStale("the lease was lost")

        async def write() -> None:
            async with storage.append(upload_id, old, epoch=2, align=ALIGN, fence=fallen) as appender:
                await appender.write(memoryview(b"WRONG"))

        with pytest.raises(StorageStale):
            await write()
        assert await unfinished(storage, new) == b"abcdef"

    async def test_a_fenced_writer_replaces_what_was_never_committed(self, storage: Storage) -> None:
        """With the lease held, bytes behind the ledger's end are written over and never come back."""
        upload_id = new_upload_id()
        old = await appended(storage, upload_id, (), b"abc", epoch=1)
        await uncommitted(storage, upload_id, old, b"WRONGWRONG", epoch=2)

        async def holds() -> None:
            return None

        async with storage.append(upload_id, old, epoch=3, align=ALIGN, fence=holds) as appender:
            await appender.write(memoryview(b"def"))
            new = committed(old, await appender.flush(last=True))
        stored = await storage.complete(upload_id, new, epoch=3)
        assert await content(storage, stored) == b"abcdef"

    async def test_two_uploads_do_not_mix(self, storage: Storage) -> None:
        """Two appends at once, write by write, keep their bytes apart."""
        one, two = new_upload_id(), new_upload_id()
        async with (
            storage.append(one, (), epoch=1, align=ALIGN) as first,
            storage.append(two, (), epoch=1, align=ALIGN) as second,
        ):
            for piece in (b"1", b"2", b"3"):
                await asyncio.gather(first.write(memoryview(piece)), second.write(memoryview(b"x" + piece)))
            ones = committed((), await first.flush(last=True))
            twos = committed((), await second.flush(last=True))

        assert (await unfinished(storage, ones), await unfinished(storage, twos)) == (b"123", b"x1x2x3")

    # small files in one step
    async def test_a_put_is_a_finished_file(self, storage: Storage) -> None:
        """What was put reads as any file, is told of as unfinished too until it is recorded, and can be deleted."""
        if not storage.puts:
            return
        upload_id = new_upload_id()
        stored = await storage.put(upload_id, memoryview(b"hello"))
        assert (stored.size, await content(storage, stored)) == (5, b"hello")
        held = [found async for found in storage.held(older_than=0)]
        assert sorted(found.key is None for found in held) == [False, True]
        assert {found.name for found in held} == {upload_id}
        for _ in range(2):
            await storage.recorded([upload_id, new_upload_id()])
        (file,) = [found async for found in storage.held(older_than=0)]
        assert (file.key, file.size) == (stored.key, 5)
        assert await content(storage, stored) == b"hello"
        await storage.delete(stored.key)
        assert [found async for found in storage.held(older_than=0)] == []

    async def test_a_put_that_was_not_recorded_can_be_undone(self, storage: Storage) -> None:
        """Nothing is held of a put file after `discard`, its mark neither."""
        if not storage.puts:
            return
        upload_id = new_upload_id()
        await storage.put(upload_id, memoryview(b"hello"))
        await storage.discard(upload_id, finished=True)
        assert [found async for found in storage.held(older_than=0)] == []

    async def test_a_last_write_is_like_any(self, storage: Storage) -> None:
        """Bytes that are told to be the last of an append are held, and the next one goes on behind them."""
        upload_id, ledger = new_upload_id(), committed((), Receipt(0))
        for number, piece in enumerate((b"abc", b"def"), start=1):
            async with storage.append(upload_id, ledger, epoch=number, align=ALIGN) as appender:
                await appender.write(memoryview(piece[:1]))
                await appender.write(memoryview(piece[1:]), last=True)
                ledger = committed(ledger, await appender.flush(last=False))
        assert await unfinished(storage, ledger) == b"abcdef"

    # without a lease
    async def test_what_is_extended_reads_as_appended(self, storage: Storage) -> None:
        """Pieces that are put behind the ledger one by one read as those of appends, which go on behind them."""
        if not storage.extends:
            return
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        for piece in (b"def", b"g"):
            receipt = await storage.extend(upload_id, ledger, memoryview(piece), epoch=1)
            assert receipt is not None
            ledger = committed(ledger, receipt)
        ledger = await appended(storage, upload_id, ledger, b"hi", epoch=2)
        assert await unfinished(storage, ledger) == b"abcdefghi"
        assert await content(storage, await storage.complete(upload_id, ledger, epoch=2)) == b"abcdefghi"

    async def test_nothing_is_extended_where_somebody_is(self, storage: Storage) -> None:
        """A writer under a lease has the place for itself, and its bytes are not written over."""
        if not storage.extends:
            return
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        async with storage.append(upload_id, ledger, epoch=2, align=ALIGN) as appender:
            await appender.write(memoryview(b"1"))
            assert await storage.extend(upload_id, ledger, memoryview(b"def"), epoch=1) is None
            await appender.write(memoryview(b"23"))
            ledger = committed(ledger, await appender.flush(last=False))
        assert await unfinished(storage, ledger) == b"abc123"

    async def test_nothing_is_extended_where_somebody_was(self, storage: Storage) -> None:
        """Bytes behind the ledger's end may be a newer writer's: they stay, and an append decides."""
        if not storage.extends:
            return
        upload_id = new_upload_id()
        before = await appended(storage, upload_id, (), b"abc")
        after = committed(before, await uncommitted(storage, upload_id, before, b"123", epoch=2))
        assert await storage.extend(upload_id, before, memoryview(b"def"), epoch=1) is None
        assert await unfinished(storage, after) == b"abc123"

    async def test_what_is_gone_is_not_extended(self, storage: Storage) -> None:
        """Where what the ledger names is not there, nothing comes to be behind it."""
        if not storage.extends:
            return
        upload_id = new_upload_id()
        ledger = await appended(storage, upload_id, (), b"abc")
        await storage.discard(upload_id)
        with pytest.raises(StorageShort):
            await storage.extend(upload_id, ledger, memoryview(b"def"), epoch=1)
        assert [found async for found in storage.held(older_than=0)] == []

    # cancellation
    async def test_a_write_that_is_cancelled_leaves_held_right(self, storage: Storage) -> None:
        """After a cancellation inside a write, the receipt reads as a prefix of what was given."""
        upload_id = new_upload_id()
        begun, go = threading.Event(), threading.Event()

        def observe(_: memoryview) -> None:
            begun.set()
            go.wait(10)

        async with storage.append(upload_id, (), epoch=1, align=ALIGN, observe=observe) as appender:
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
            async with storage.append(upload_id, ledger, epoch=2, align=ALIGN) as appender:
                await appender.write(memoryview(b"WRONG"))
                inside.set()
                await asyncio.Event().wait()

        hanging = asyncio.ensure_future(hang())
        await inside.wait()
        hanging.cancel()
        await asyncio.wait({hanging})
        ledger = await appended(storage, upload_id, ledger, b"def", epoch=3)

        assert await unfinished(storage, ledger) == b"abcdef"
