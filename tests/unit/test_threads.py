"""Calls in threads: over when the caller is, never begun when it is too late, and nothing kept of them."""

from __future__ import annotations

import asyncio
import threading
import weakref
from typing import Any

import pytest

from service.storage.threads import Threads


class Held:
    """A call that runs until it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go, self.ended = threading.Event(), threading.Event(), False

    def __call__(self) -> str:
        self.begun.set()
        self.let_go.wait(30)
        self.ended = True
        return "done"


async def began(call: Held) -> None:
    await asyncio.to_thread(call.begun.wait, 30)


async def test_what_it_returns_or_raises_is_the_callers() -> None:
    """A result comes back, and so does an error."""
    threads = Threads(1, "t")
    assert await threads.run(lambda: 7) == 7
    assert await threads.surely(lambda: 8) == 8
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 // 0)
    threads.close()


async def test_no_more_run_at_once_than_there_are_threads() -> None:
    """The third of three calls waits for one of two threads, which are the only ones ever made."""
    threads, calls = Threads(2, "bounded"), [Held() for _ in range(3)]
    tasks = [asyncio.ensure_future(threads.run(call)) for call in calls]
    await began(calls[0])
    await began(calls[1])
    assert not calls[2].begun.is_set()
    calls[0].let_go.set()
    await began(calls[2])
    assert sum(thread.name.startswith("bounded") for thread in threading.enumerate()) == 2
    for call in calls:
        call.let_go.set()
    assert await asyncio.gather(*tasks) == ["done"] * 3
    threads.close()


async def test_a_cancelled_call_that_has_not_begun_never_does() -> None:
    """What waited for a thread when its caller went away is left out, and those behind it are not."""
    threads, first, second = Threads(1, "t"), Held(), Held()
    running = asyncio.ensure_future(threads.run(first))
    await began(first)
    waiting = asyncio.ensure_future(threads.run(second))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    first.let_go.set()
    assert await running == "done"
    assert await threads.run(lambda: 1) == 1
    assert not second.begun.is_set()
    threads.close()


async def test_a_cancelled_call_that_runs_is_waited_for() -> None:
    """The caller is cancelled once the call is over, however often it is asked to go, and the call is told to hurry."""
    threads, call = Threads(1, "t"), Held()
    hurried: list[bool] = []
    task = asyncio.ensure_future(threads.run(call, stop=lambda: hurried.append(call.ended)))
    await began(call)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    call.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.ended
    assert hurried == [False]
    threads.close()


async def test_a_cancellation_that_comes_with_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that is cancelled when the call is over, and before it heard of that, waits for nothing more."""
    threads = Threads(1, "t")
    settle = threads._settle
    tasks: list[asyncio.Task[int]] = []

    def and_cancel(*told: Any) -> None:
        settle(*told)
        tasks[0].cancel()

    monkeypatch.setattr(threads, "_settle", and_cancel)
    tasks.append(asyncio.create_task(threads.surely(lambda: 2)))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(tasks[0], 30)
    threads.close()


async def test_what_must_be_done_is_done() -> None:
    """A sure call that waits for a thread is made although its caller is cancelled."""
    threads, first = Threads(1, "t"), Held()
    made: list[int] = []
    running = asyncio.ensure_future(threads.run(first))
    await began(first)
    sure = asyncio.ensure_future(threads.surely(lambda: made.append(1)))
    await asyncio.sleep(0)
    sure.cancel()
    await asyncio.sleep(0)
    assert not sure.done()
    first.let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await sure
    assert made == [1]
    assert await running == "done"
    threads.close()


async def test_a_thread_that_does_not_start_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine has no thread to give the first call fails; later ones do with those there are, or get one."""
    threads, start = Threads(2, "t"), threading.Thread.start

    def fails(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fails)
    with pytest.raises(RuntimeError, match="start"):
        await threads.run(lambda: 1)
    monkeypatch.setattr(threading.Thread, "start", start)
    first, second = Held(), Held()
    tasks = [asyncio.ensure_future(threads.run(first))]
    await began(first)
    monkeypatch.setattr(threading.Thread, "start", fails)
    tasks.append(asyncio.ensure_future(threads.run(second)))
    await asyncio.sleep(0)
    assert not second.begun.is_set()
    monkeypatch.setattr(threading.Thread, "start", start)
    third = asyncio.ensure_future(threads.run(lambda: 3))
    # in a thread of its own, as the first has not ended
    await began(second)
    for call in (first, second):
        call.let_go.set()
    assert await asyncio.gather(*tasks, third) == ["done", "done", 3]
    threads.close()


async def test_nothing_of_a_call_is_kept() -> None:
    """An idle thread holds neither the call nor what it returned."""

    class Thing:
        """Can be watched."""

        def __call__(self) -> Thing:
            return self

    threads, thing = Threads(1, "t"), Thing()
    watched = weakref.ref(thing)
    assert await threads.run(thing) is thing
    del thing
    # the thread lets go behind the answer
    async with asyncio.timeout(30):
        while watched() is not None:
            await asyncio.sleep(0.001)
    threads.close()


async def test_closed_threads_end_what_waits_and_take_no_more() -> None:
    """Calls that were asked for before the end are made; later ones are refused; the threads go."""
    threads, first = Threads(1, "going"), Held()
    running = asyncio.ensure_future(threads.run(first))
    await began(first)
    waiting = asyncio.ensure_future(threads.run(lambda: 2))
    await asyncio.sleep(0)
    threads.close()
    with pytest.raises(RuntimeError, match="closed"):
        await threads.run(lambda: 3)
    first.let_go.set()
    assert (await running, await waiting) == ("done", 2)
    async with asyncio.timeout(30):
        while any(thread.name.startswith("going") for thread in threading.enumerate()):
            await asyncio.sleep(0.001)
