"""Of the processes on one database one sweeps, and another takes over when it ends (lesson E1)."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service import duties, janitor
from service.duties import TERM_SECONDS
from service.model import State
from tests.web.harness import Site, site
from tests.web.sweeps import HOUR, broken, finishing, logged, replaced, state, succeeded
from tests.web.traces import events
from tests.web.under_way import SteppedClock, until


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duties, "LOOK_SECONDS", 0.02)


@asynccontextmanager
async def worker(folder: Path, clock: SteppedClock, **changes: Any) -> AsyncIterator[Site]:
    """One of several processes on one directory, as far as the database can tell.

    Uploads expire within a term.
    """
    async with site(folder, clock=clock, alone=False, upload_idle="10s", sweep_interval="1s", **changes) as here:
        yield here


class Looks:
    """How often a process looked for a duty, or renewed it."""

    def __init__(self, here: Site) -> None:
        self.count = 0
        self._real = here.service.metadata.take_duty

    async def __call__(self, *args: Any, **options: Any) -> bool:
        took = await self._real(*args, **options)
        self.count += 1
        return took

    async def more(self) -> None:
        """A few more are over."""
        now = self.count
        await until(lambda: self.count > now + 2)


@contextlib.contextmanager
def looks(here: Site) -> Iterator[Looks]:
    counted = Looks(here)
    with replaced(here, "metadata", "take_duty", counted):
        yield counted


@contextlib.contextmanager
def killed(here: Site) -> Iterator[None]:
    """Where the service is stopped inside, what it had is not given back: so a kill leaves it."""

    async def nothing(*_: Any) -> None:
        pass

    with replaced(here, "metadata", "give_back_duty", nothing):
        yield


async def test_E1_one_of_two_processes_sweeps(tmp_path: Path, log: io.StringIO) -> None:
    """E1: With two processes an expired upload is reaped once, and gauges and log are those of one of them."""
    clock = SteppedClock()
    async with worker(tmp_path, clock) as one, worker(tmp_path, clock) as other:
        await until(lambda: succeeded(one) > 0)
        path = await other.create(10)
        await other.patch(path, 0, b"hello")
        clock.skip(11)
        await until(lambda: one.leftovers() == [])
        with looks(other) as looking:
            await looking.more()
        assert [kind for kind, _ in events(one)] == ["upload.created", "upload.expired"]
        assert succeeded(other) == 0
        assert len(logged(log, "duty_taken")) == len(logged(log, "upload_expired")) == 1


async def test_E1_an_orderly_stop_hands_the_duty_on(tmp_path: Path) -> None:
    """E1: When the sweeper's process stops another sweeps at its next look, within the term."""
    clock = SteppedClock()
    async with AsyncExitStack() as first:
        one = await first.enter_async_context(worker(tmp_path, clock))
        await until(lambda: succeeded(one) > 0)
        async with worker(tmp_path, clock) as other:
            with looks(other) as looking:
                await looking.more()
            assert succeeded(other) == 0
            await first.aclose()
            await until(lambda: succeeded(other) > 0)


async def test_E1_after_a_kill_another_sweeps_a_term_later(tmp_path: Path) -> None:
    """E1: When the sweeper's process is killed nobody sweeps until its term is over, and then another does."""
    clock = SteppedClock()
    async with AsyncExitStack() as first:
        one = await first.enter_async_context(worker(tmp_path, clock))
        await until(lambda: succeeded(one) > 0)
        path = await one.create(10)
        await one.patch(path, 0, b"hello")
        async with worker(tmp_path, clock) as other:
            with killed(one):
                await first.aclose()
            clock.skip(TERM_SECONDS - 1)
            with looks(other) as looking:
                await looking.more()
            assert succeeded(other) == 0
            clock.skip(2)
            await until(lambda: other.leftovers() == [])
            assert await state(other, path) is State.EXPIRED


async def test_E1_a_sweeper_that_slept_past_its_term_stands_back(tmp_path: Path, log: io.StringIO) -> None:
    """E1: A process whose duty another took meanwhile sweeps no more, and has it again when that one ends."""
    clock = SteppedClock()
    async with worker(tmp_path, clock) as one, AsyncExitStack() as second:
        await until(lambda: succeeded(one) > 0)
        with broken(one, "metadata", "take_duty"):
            other = await second.enter_async_context(worker(tmp_path, clock))
            clock.skip(TERM_SECONDS + 1)
            await until(lambda: succeeded(other) > 0)
        await until(lambda: logged(log, "duty_lost") != [])
        before = succeeded(one)
        clock.skip(5)
        await until(lambda: succeeded(other) == clock.now())
        assert succeeded(one) == before
        await second.aclose()
        await until(lambda: succeeded(one) > before)


async def test_E1_a_term_is_renewed_while_a_completion_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E1: A join that goes on behind the sweeps for several terms keeps the duty where it is, and is made once."""
    monkeypatch.setattr(janitor, "_PATIENCE_SECONDS", 0.01)
    clock = SteppedClock()
    async with worker(tmp_path, clock) as one:
        await until(lambda: succeeded(one) > 0)
        slow, go, calls = await finishing(one), asyncio.Event(), 0
        complete = one.service.storage.complete

        async def held(*args: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            await go.wait()
            return await complete(*args, **options)

        async with worker(tmp_path, clock) as other:
            with replaced(one, "storage", "complete", held):
                await until(lambda: calls == 1)
                for _ in range(3):
                    clock.skip(TERM_SECONDS - 1)
                    with looks(one) as renewed, looks(other) as looking:
                        await renewed.more()
                        await looking.more()
                assert succeeded(other) == 0
                go.set()
                await until(lambda: not one.service.leases.held_here(one.upload_id(slow)))
            assert await state(one, slow) is State.READY
            assert calls == 1


async def test_E1_processes_look_for_orphans_once_an_hour_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E1: A take-over does not walk through storage again; an hour after the last walk its turn has come."""
    clock, walks = SteppedClock(), []
    walk = janitor.Janitor._remove_orphans

    async def counted(self: Any, *args: Any) -> None:
        walks.append(clock.now())
        await walk(self, *args)

    monkeypatch.setattr(janitor.Janitor, "_remove_orphans", counted)
    async with AsyncExitStack() as first:
        one = await first.enter_async_context(worker(tmp_path, clock))
        await until(lambda: succeeded(one) > 0)
        async with worker(tmp_path, clock) as other:
            await first.aclose()
            await until(lambda: succeeded(other) > 0)
            assert len(walks) == 1
            clock.skip(HOUR)
            await until(lambda: len(walks) == 2)


async def test_a_sweep_by_hand_asks_for_no_duty(tmp_path: Path) -> None:
    """A process that has not the duty sweeps when it is told to, orphans too."""
    clock = SteppedClock()
    async with worker(tmp_path, clock) as one, worker(tmp_path, clock) as other:
        await until(lambda: succeeded(one) > 0)
        with broken(other, "metadata", "take_duty"):
            await other.service.janitor.sweep()
        assert succeeded(other) == clock.now()


async def test_a_database_that_is_away_ends_no_sweeping(tmp_path: Path, log: io.StringIO) -> None:
    """While the duty can be neither renewed nor taken the process looks on, and sweeps when it can again."""
    clock = SteppedClock()
    async with worker(tmp_path, clock) as one:
        await until(lambda: succeeded(one) > 0)
        with broken(one, "metadata", "take_duty"):
            await until(lambda: len(logged(log, "duty_unknown")) > 2)
        clock.skip(60)
        await until(lambda: succeeded(one) == clock.now())
