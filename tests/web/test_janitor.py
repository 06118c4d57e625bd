"""The sweeper: one thing that fails stops nothing else, a clock that jumps ends nothing, a slow join delays nothing."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from service import janitor
from service.leases import TERM_SECONDS
from service.metadata.base import MetadataUnavailable
from service.model import FileId, State
from service.storage.base import StorageFull
from tests.web.harness import TUS, Site
from tests.web.sweeps import (
    DAY,
    HOUR,
    age,
    broken,
    final,
    finishing,
    logged,
    overlooked_final,
    reclaimed,
    replaced,
    shard,
    skip,
    state,
    succeeded,
    unfinishable,
)
from tests.web.traces import forward
from tests.web.under_way import until

# --- one failure stops nothing else ---------------------------------------------------------------


async def test_an_upload_that_cannot_be_stored_stops_nothing(swept: Site, log: io.StringIO) -> None:
    """Older uploads expire and newer ones are finished beside one that cannot be; the log names it."""
    old = await swept.create(10)
    await swept.patch(old, 0, b"hello")
    skip(swept, HOUR + 1)
    stuck, other = await unfinishable(swept), await finishing(swept)
    await swept.service.janitor.sweep()

    assert [await state(swept, path) for path in (old, stuck, other)] == [State.EXPIRED, State.FINISHING, State.READY]
    record = logged(log, "sweep_step_failed")[-1]
    assert (record["level"], record["upload_id"]) == ("warning", swept.upload_id(stuck))
    assert "publishing" in record["reason"]


async def test_a_sweep_succeeds_only_whole(swept: Site) -> None:
    """The time of the last success stands still while something fails, and moves once nothing does."""
    before, stuck = succeeded(swept), await unfinishable(swept)
    skip(swept, 60)
    await swept.service.janitor.sweep()
    assert succeeded(swept) == before
    shard(swept, stuck).unlink()
    await swept.service.janitor.sweep()
    assert succeeded(swept) == before + 60
    assert await swept.stored(stuck) == b"stuck"


async def test_expiry_gives_completions_their_room(swept: Site) -> None:
    """On a full disk one sweep expires what is due and then finishes what waited for that room."""
    old = await swept.create(10)
    await swept.patch(old, 0, b"hello")
    skip(swept, HOUR + 1)
    waits = await finishing(swept)
    complete = swept.service.storage.complete

    async def roomy(*args: Any, **options: Any) -> Any:
        if any(swept.upload_id(old) in name for name in await asyncio.to_thread(swept.leftovers)):
            raise StorageFull("no space left on device")
        return await complete(*args, **options)

    with replaced(swept, "storage", "complete", roomy):
        await swept.service.janitor.sweep()
    assert await swept.stored(waits) == b"xxxxx"


STAGES = ("expired_uploads", "expired_files", "purge", "finishing_uploads", "waiting_finals", "totals", "file_keys")


@pytest.mark.parametrize("error", [MetadataUnavailable("locked"), RuntimeError("a bug")], ids=["away", "bug"])
@pytest.mark.parametrize("stage", STAGES)
async def test_a_stage_that_fails_stops_no_other(swept: Site, log: io.StringIO, stage: str, error: Exception) -> None:
    """Whichever stage fails, and however: the others are done, the failure is logged, and it is no success."""
    tomb = await swept.create(10)
    await swept.ask("DELETE", tomb, TUS)
    skip(swept, 2 * HOUR)
    old = await swept.create(10)
    file = FileId(await swept.upload(b"content", ttl=60))
    skip(swept, HOUR + 1)
    stuck, joined = await finishing(swept), await overlooked_final(swept)
    made = await swept.create(3)
    await swept.patch(made, 0, b"abc")
    age(swept)
    before = succeeded(swept)
    with broken(swept, "metadata", stage, error):
        await swept.service.janitor.sweep()

    deleted = await swept.service.metadata.file(file)
    assert deleted is not None
    done = {
        "expired_uploads": await state(swept, old) is State.EXPIRED,
        "expired_files": deleted.deleted_at is not None,
        "purge": await state(swept, tomb) is None,
        "finishing_uploads": await state(swept, stuck) is State.READY,
        "waiting_finals": await state(swept, joined) is State.READY,
    }
    assert {name for name, well in done.items() if not well} == {stage} & set(done)
    assert str(error) in {record["reason"] for record in logged(log, "sweep_step_failed")}
    assert succeeded(swept) == before


async def test_a_file_whose_bytes_stay_stops_no_other(swept: Site, log: io.StringIO) -> None:
    """Each expired file is deleted though none of their bytes can be removed; the log names each."""
    files = [FileId(await swept.upload(b"content", ttl=60)) for _ in range(3)]
    skip(swept, HOUR)
    with broken(swept, "storage", "delete", StorageFull("away")):
        await swept.service.janitor.sweep()
    found = [await swept.service.metadata.file(file) for file in files]
    assert all(file is not None and file.deleted_at for file in found)
    assert {record.get("file_id") for record in logged(log, "sweep_step_failed")} == set(files)
    assert reclaimed(swept) == 0


async def test_a_completion_under_way_is_no_failure(swept: Site, log: io.StringIO) -> None:
    """A sweep passes by what a request is at, without waiting for it, and succeeds."""
    path, go, begun = await swept.create(5), asyncio.Event(), asyncio.Event()
    complete = swept.service.storage.complete

    async def slow(*args: Any, **options: Any) -> Any:
        begun.set()
        await go.wait()
        return await complete(*args, **options)

    with replaced(swept, "storage", "complete", slow):
        patching = asyncio.ensure_future(swept.patch(path, 0, b"hello"))
        await begun.wait()
        skip(swept, 1)
        await swept.service.janitor.sweep()
        assert succeeded(swept) == swept.service.janitor._clock.now()
        assert not patching.done()
        go.set()
        assert (await patching).status == 204
    assert logged(log, "sweep_step_failed") + logged(log, "settle_postponed") == []


@pytest.mark.parametrize("kind", ["finishing", "final", "upload", "file"])
async def test_what_is_behind_a_page_of_failures_is_reached(
    swept: Site, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """However many stay on a list, the newest on it gets its turn in the same sweep."""
    monkeypatch.setattr(janitor, "_BATCH", 2)
    stuck: set[str] = set()
    metadata = swept.service.metadata
    end_upload, delete_file = metadata.end_upload, metadata.delete_file

    async def end(upload_id: str, **options: Any) -> Any:
        if upload_id in stuck:
            raise MetadataUnavailable("away")
        return await end_upload(upload_id, **options)  # type: ignore[arg-type]

    async def delete(file_id: str, **options: Any) -> Any:
        if file_id in stuck:
            raise MetadataUnavailable("away")
        return await delete_file(file_id, **options)  # type: ignore[arg-type]

    makers: dict[str, Callable[[], Awaitable[str]]] = {
        "finishing": lambda: finishing(swept),
        "final": lambda: overlooked_final(swept),
        "upload": lambda: swept.create(10),
        "file": lambda: swept.upload(b"content", ttl=60),
    }
    if kind == "finishing":
        for _ in range(5):
            await unfinishable(swept)
            skip(swept, 1)
    elif kind == "final":
        part = await swept.create(5, Upload_Concat="partial")
        for _ in range(5):
            await final(swept, part)
            skip(swept, 1)
    else:
        for _ in range(5):
            made = await makers[kind]()
            stuck.add(made if kind == "file" else swept.upload_id(made))
            skip(swept, 1)
    newest = await makers[kind]()
    if kind in ("upload", "file"):
        skip(swept, HOUR + 1)
    with replaced(swept, "metadata", "end_upload", end), replaced(swept, "metadata", "delete_file", delete):
        await swept.service.janitor.sweep()

    if kind == "file":
        file = await metadata.file(FileId(newest))
        assert file is not None
        assert file.deleted_at
    else:
        assert await state(swept, newest) is (State.EXPIRED if kind == "upload" else State.READY)


# --- what takes long ------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def sweeping(here: Site) -> AsyncIterator[None]:
    """The sweeper comes again and again inside."""
    running = asyncio.ensure_future(here.service.janitor.run(0.005, here.service.duties))
    try:
        yield
    finally:
        running.cancel()
        async with asyncio.timeout(30):
            await asyncio.wait({running})
        assert running.cancelled()


class Hold:
    """A call of storage that does not end until it is let go; ends at once if cancelled."""

    def __init__(self, here: Site, name: str) -> None:
        self.calls = 0
        self.go = asyncio.Event()
        self._real = getattr(here.service.storage, name)

    async def __call__(self, *args: Any, **options: Any) -> Any:
        self.calls += 1
        await self.go.wait()
        return await self._real(*args, **options)


async def test_a_slow_completion_delays_no_expiry(swept: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a join takes its time, what expires meanwhile goes; the join is made once, and then it is a success."""
    monkeypatch.setattr(janitor, "_PATIENCE_SECONDS", 0.01)
    slow, old = await finishing(swept), await swept.create(10)
    await swept.patch(old, 0, b"hello")
    hold = Hold(swept, "complete")
    with replaced(swept, "storage", "complete", hold):
        async with sweeping(swept):
            await until(lambda: hold.calls == 1)
            before = succeeded(swept)
            skip(swept, HOUR + 1)
            await until(lambda: not any(swept.upload_id(old) in name for name in swept.leftovers()))
            assert succeeded(swept) == before
            hold.go.set()
            await until(lambda: succeeded(swept) > before)
    assert hold.calls == 1
    assert await swept.stored(slow) == b"xxxxx"


async def test_a_stop_does_not_wait_for_completions(swept: Site) -> None:
    """A sweeper that is told to stop does so in the middle of a completion, which the next one makes."""
    slow, hold = await finishing(swept), Hold(swept, "complete")
    with replaced(swept, "storage", "complete", hold):
        async with sweeping(swept):
            await until(lambda: hold.calls == 1)
    await swept.service.janitor.sweep()
    assert await swept.stored(slow) == b"xxxxx"


# --- a clock that jumps ---------------------------------------------------------------------------


class Sweeps:
    """Counts the sweeps."""

    def __init__(self, here: Site) -> None:
        self.count = 0
        self._totals = here.service.metadata.totals

    async def __call__(self) -> Any:
        self.count += 1
        return await self._totals()

    async def several(self) -> None:
        """A few more whole sweeps are over."""
        now = self.count
        await until(lambda: self.count > now + 2)


@pytest.fixture
async def again(swept: Site) -> AsyncIterator[Sweeps]:
    """The service is swept again and again."""
    sweeps = Sweeps(swept)
    with replaced(swept, "metadata", "totals", sweeps):
        async with sweeping(swept):
            await sweeps.several()
            yield sweeps


async def test_a_clock_that_jumps_ends_no_upload(swept: Site, again: Sweeps, log: io.StringIO) -> None:
    """A wall clock a week ahead of the time that passed expires nothing; set right again, all goes on."""
    path, file = await swept.create(10), await swept.upload(b"content", ttl=HOUR)
    await swept.patch(path, 0, b"hello")
    forward(swept, 7 * DAY)
    await again.several()
    assert await state(swept, path) is State.RECEIVING
    (record,) = logged(log, "clock_jumped")
    assert (record["level"], record["seconds"]) == ("warning", 7 * DAY)
    forward(swept, -7 * DAY)
    await again.several()
    assert (await swept.patch(path, 5, b"world")).status == 204
    assert await swept.fetch(file) == b"content"


async def test_a_clock_that_stays_ahead_is_believed(swept: Site, again: Sweeps) -> None:
    """Once whoever is at work had time to renew its lease, what the new clock says is over ends."""
    path = await swept.create(10)
    await swept.patch(path, 0, b"hello")
    forward(swept, 7 * DAY)
    await again.several()
    skip(swept, TERM_SECONDS)
    await again.several()
    assert await state(swept, path) in (State.EXPIRED, None)


async def test_time_that_passes_is_no_jump(swept: Site, again: Sweeps, log: io.StringIO) -> None:
    """A day that both clocks saw expires what is due."""
    path = await swept.create(10)
    await swept.patch(path, 0, b"hello")
    skip(swept, HOUR + 1)
    await again.several()
    assert await state(swept, path) is State.EXPIRED
    assert logged(log, "clock_jumped") == []
