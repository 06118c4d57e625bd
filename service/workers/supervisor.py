"""Starts the workers, replaces those that die, and answers for all of them. See the package.

A worker that dies is replaced at once; one that dies young again and again, after a wait that
doubles. One whose event loop gives no sign of life for half a minute is killed, since the kernel
goes on giving it connections, and so is one whose start does not come to an end. A start succeeds
when every worker serves; a worker that cannot start, or dies, ends the start with its word, and is
tried again if that comes later. One that gets a signal of its own is let go, as the others have the
address too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

import structlog

from service import __version__, metrics
from service.runtime import Claim, claimed, new_process
from service.settings import Settings
from service.starting import CannotStart, naming, words
from service.web.ops import CHECK_SECONDS, make_ops_app, watch_readiness
from service.workers.channel import Channel
from service.workers.counting import counting_in
from service.workers.ending import FORCED_SECONDS, ONE_SIGNAL_SECONDS, Start, end_by, on_signals, succeeded
from service.workers.nursery import Nursery, NurseryLost
from service.workers.worker import BEAT_SECONDS, Job

log = structlog.get_logger(__name__)

#: without a sign of life for so many of the supervisor's own seconds a worker is stuck
_STUCK_BEATS: Final = 30
#: a start that takes so many of them will not end: a database or a store that hangs is given up long before
_START_BEATS: Final = 120
#: a worker that lived so long had no trouble with its start
_YOUNG_SECONDS: Final = 10.0
_FIRST_WAIT_SECONDS: Final = 0.1
_LONGEST_WAIT_SECONDS: Final = 10.0
#: a worker takes so long to look, and a moment to answer
_CHECK_SECONDS: Final = CHECK_SECONDS + 1.0


@dataclass(slots=True, eq=False)
class _Process:
    """A worker's process."""

    number: int
    #: see `Share.process`
    token: str
    pid: int
    channel: Channel
    started: bool = False
    #: why it did not start
    refused: str | None = None
    #: seconds of ours since it was made, and since its last sign of life
    age: int = 0
    silent: int = 0
    #: whether it was killed for one of them
    stuck: bool = False
    #: whether it was let go alone
    leaving: bool = False
    #: what it said last that it cannot use, and whether it was asked and has not answered
    checked: asyncio.Event = field(default_factory=asyncio.Event)
    failed: dict[str, str] = field(default_factory=dict)
    asked: bool = False

    @property
    def serves(self) -> bool:
        """Whether new connections come to it."""
        return self.started and not self.leaving


async def serve(
    settings: Settings, count: int, nursery: Nursery, *, beside: bool, ready: Callable[[Claim], None]
) -> None:
    """As `single.serve`, with so many workers.

    Raises:
        CannotStart: says why.
        SystemExit: the nursery was lost, and the service stopped because of that; or a worker did not end by itself.
    """
    start = Start()
    supervisor: Supervisor | None = None

    def end_now() -> NoReturn:
        if supervisor is not None:
            supervisor.kill_all()
        os._exit(1)

    on_signals(start.stop, end_now)
    async with contextlib.AsyncExitStack() as stack:
        try:
            claim = await stack.enter_async_context(claimed(settings, beside=beside))
            with naming("ATTACHD_DATA", settings.data.absolute()):
                directory = await asyncio.to_thread(counting_in, settings.data, count, alone=claim.alone)
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            supervisor = Supervisor(settings, count, nursery, claim, directory, start.stop)
            stack.push_async_callback(supervisor.kill)
            await supervisor.start()
            start.over()
            stack.push_async_callback(claim.operations.end)
            await claim.operations.serve(
                make_ops_app(supervisor.summed.render, supervisor.failed, start.stopped.is_set)
            )
            watch = watch_readiness(supervisor.failed, start.stopped.is_set, supervisor.summed.ready)
            stack.callback(asyncio.create_task(watch).cancel)
            await asyncio.to_thread(claim.directory.serves)
            listen, ops = str(claim.public.address), str(claim.operations.address)
            log.info("service_started", version=__version__, listen=listen, ops=ops, workers=count)
            ready(claim)
            await start.stopped.wait()
            end_by(settings.grace + 2 * FORCED_SECONDS, supervisor.kill_all)
            has_successor = await succeeded(claim.directory)
            if has_successor:
                await claim.operations.close()
            await supervisor.drain(succeeded=has_successor)
        except asyncio.CancelledError:
            if not start.cancelled():
                raise
    log.info("service_stopped")
    if supervisor is not None and supervisor.failed_to_end:
        raise SystemExit(1)


class Supervisor:
    """The workers of one service."""

    def __init__(
        self,
        settings: Settings,
        count: int,
        nursery: Nursery,
        claim: Claim,
        directory: Path,
        on_lost: Callable[[], None],
    ) -> None:
        self.summed = metrics.Summed(directory)
        #: whether a worker had to be ended, or the nursery is lost, which ends the service
        self.failed_to_end = False
        self._nursery = nursery
        self._on_lost = on_lost
        self._settings = settings.model_copy(update={"listen": claim.public.address})
        self._count = count
        self._lock = claim.directory.lock
        self._bound = claim.public.bound
        self._directory = directory
        self._processes: dict[int, _Process] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._ticking: asyncio.Task[None] | None = None
        #: tokens of processes that died and whose leases nobody has freed yet
        self._dead: set[str] = set()
        #: how often one was told to
        self._asked = 0
        self._up = False
        self._stopping = asyncio.Event()
        #: whether the workers have been told to end by themselves
        self._draining = False

    # --- their life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """All workers serve. Raises CannotStart: one of them cannot."""
        self._keepers = [asyncio.create_task(self._keep(number)) for number in range(self._count)]
        self._ticking = asyncio.create_task(self._tick())
        while not self._up:
            ended, _ = await asyncio.wait(self._keepers, timeout=0.02)
            for keeper in ended:
                keeper.result()
            self._up = len(self._processes) == self._count and all(one.started for one in self._processes.values())

    async def drain(self, *, succeeded: bool) -> None:
        """All workers have ended; see `Service.stop`."""
        log.info("service_draining", succeeded=succeeded)
        self._draining = True
        self._stopping.set()
        for process in self._processes.values():
            process.channel.tell("drain", succeeded=succeeded)
        await asyncio.wait(self._keepers)

    async def kill(self) -> None:
        """None is left, however things stand."""
        self._stopping.set()
        if self._ticking is not None:
            self._ticking.cancel()
        self.kill_all()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    def kill_all(self) -> None:
        """No worker serves any more."""
        for process in list(self._processes.values()):
            _kill(process)

    async def _keep(self, number: int) -> None:
        """There is a worker of that number, until the service stops."""
        loop, wait = asyncio.get_running_loop(), 0.0
        while not self._stopping.is_set():
            began = loop.time()
            try:
                await self._one_life(number)
            except NurseryLost:
                self._lose()
                return
            except CannotStart:
                raise
            except Exception:
                if not self._up:
                    raise
                # whatever it was: without its keeper the worker would never be replaced
                log.exception("worker_lost", number=number)
            if self._stopping.is_set():
                return
            young = loop.time() - began < _YOUNG_SECONDS
            wait = min(max(2 * wait, _FIRST_WAIT_SECONDS), _LONGEST_WAIT_SECONDS) if young else 0.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._stopping.wait()

    async def _one_life(self, number: int) -> None:
        """A worker was there and has ended. Raises CannotStart: it could not start, and the service is starting."""
        try:
            process = await self._spawn(number)
            code = await self._attend(process)
        except OSError as error:
            # no descriptors, no memory: later, perhaps
            log.error("worker_not_made", number=number, reason=words(error))  # noqa: TRY400 - its place says nothing
            return
        if self._stopping.is_set():
            self.failed_to_end |= self._draining and code != 0
        elif not self._up:
            raise CannotStart(process.refused or f"a worker ended while it started ({_exit(code)})")
        elif process.leaving and code == 0:
            log.info("worker_left", number=number, pid=process.pid)
        else:
            self.summed.worker_died()
            log.error("worker_died", number=number, pid=process.pid, exit=_exit(code), detail=process.refused)

    def _lose(self) -> None:
        """No worker can be replaced any more: whatever looks after the service had better start it anew."""
        if not self._stopping.is_set() and not self.failed_to_end:
            log.error("nursery_lost")
            self.failed_to_end = True
            self._on_lost()

    async def _spawn(self, number: int) -> _Process:
        ours, theirs = socket.socketpair()
        job = Job(number, new_process(), self._settings, str(self._directory))
        with theirs:
            handed = [theirs.fileno(), self._lock, *([] if self._bound is None else [self._bound.fileno()])]
            try:
                # they were removed, perhaps, by what cleans shared memory up
                await asyncio.to_thread(metrics.reserve, self._directory, number)
                pid = await asyncio.to_thread(self._nursery.bear, job, handed)
            except (NurseryLost, OSError):
                ours.close()
                raise
        ours.setblocking(False)
        try:
            channel = await Channel.over(ours)
        except OSError:
            # nobody else will ask how it ended
            ours.close()
            await asyncio.to_thread(self._nursery.reap, pid)
            raise
        process = self._processes[number] = _Process(number, job.process, pid, channel)
        if self._stopping.is_set():
            channel.tell("drain", succeeded=False)
        return process

    async def _attend(self, process: _Process) -> int:
        """Hears the worker until it is gone; how it ended."""
        try:
            async for message in process.channel.told():
                process.silent = 0
                self._hear(process, message)
        except Exception:
            # no second one may have its number while it lives
            log.exception("worker_misheard", number=process.number, pid=process.pid)
            _kill(process)
        # its number may be another's once it has been asked how it ended
        del self._processes[process.number]
        self._dead.add(process.token)
        self._count_workers()
        try:
            code = await asyncio.to_thread(self._nursery.reap, process.pid)
        finally:
            await process.channel.close()
        process.checked.set()
        self._release()
        try:
            await asyncio.to_thread(metrics.forget_gauges, self._directory, process.number)
        except OSError as error:
            log.warning("gauges_kept", number=process.number, reason=words(error))
        return code

    def _hear(self, process: _Process, message: dict[str, Any]) -> None:
        match message["kind"]:
            case "started":
                process.started = True
                self._count_workers()
                self._release()
            case "refused":
                process.refused = message["detail"]
            case "checked":
                process.failed, process.asked = message["failed"], False
                process.checked.set()
            case "released":
                self._dead.discard(message["process"])
            case "signalled":
                # a signal to the whole group comes here as well
                asyncio.get_running_loop().call_later(ONE_SIGNAL_SECONDS, self._let_go, process)

    def _let_go(self, process: _Process) -> None:
        """It ends, once another one is there for new connections; unless the whole service does."""
        if self._stopping.is_set() or self._processes.get(process.number) is not process:
            return
        if not any(one.serves for one in self._processes.values() if one is not process):
            asyncio.get_running_loop().call_later(BEAT_SECONDS, self._let_go, process)
            return
        process.leaving = True
        process.channel.tell("drain", succeeded=True)
        self._count_workers()

    def _release(self) -> None:
        """One that serves frees the leases of those that died; the next one is told if it does not say that it has."""
        alive = [one for one in self._processes.values() if one.serves]
        if alive:
            self._asked += 1
            for token in self._dead:
                alive[self._asked % len(alive)].channel.tell("release", process=token)

    def _count_workers(self) -> None:
        self.summed.workers(sum(one.serves for one in self._processes.values()))

    async def _tick(self) -> None:
        """Counts seconds by waiting for them: while this process sleeps as well, nobody is stuck."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            self._release()
            for process in self._processes.values():
                process.age += 1
                process.silent += 1
                if not process.stuck and (
                    process.silent > _STUCK_BEATS or (process.age > _START_BEATS and not process.started)
                ):
                    process.stuck, process.refused = True, "it was stuck"
                    log.error("worker_stuck", number=process.number, pid=process.pid, started=process.started)
                    _kill(process)

    # --- for the operations listener --------------------------------------------------------------

    async def failed(self) -> dict[str, str]:
        """What the service cannot use now, by name: nothing, if one of the workers can use all it needs."""
        asked = [one for one in self._processes.values() if one.serves]
        for process in asked:
            if not process.asked:
                process.asked = True
                process.checked.clear()
                process.channel.tell("check")
        answers = {asyncio.create_task(process.checked.wait()): process for process in asked}
        failed: dict[str, str] = {"workers": "timeout" if asked else "error"}
        try:
            async with asyncio.timeout(_CHECK_SECONDS):
                while answers:
                    ended, _ = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
                    for process in map(answers.pop, ended):
                        if self._processes.get(process.number) is process:
                            failed = process.failed
                            if not failed:
                                return failed
        except TimeoutError:
            return failed
        finally:
            for task in answers:
                task.cancel()
        return failed


def _kill(process: _Process) -> None:
    # the nursery has not been asked how it ended, so the number is still its own
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)


def _exit(code: int) -> str:
    """How a process ended, in words."""
    try:
        return signal.Signals(-code).name if code < 0 else str(code)
    except ValueError:
        # a real-time signal has no name
        return f"signal {-code}"
