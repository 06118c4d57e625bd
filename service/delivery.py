"""Events to their receivers: at least once, in order per file, for three days (contract, section 9).

Of the processes that share a database one delivers, as one sweeps (`duties`); after a kill another
goes on a term later at most. What waits, for whom, since when and until when is in the database
(`metadata.outbox`), so nothing is lost with a process: an event that was sent and not settled is
sent again, under the same id.

Each endpoint has a line of its own, with connections of its own: one that hangs holds up nobody
else's (lesson V3). In a line, events of different files go side by side; of one file the next is
due once the one before was delivered, or given up after its last try. What was given up stays
recorded for `attachd events replay`.

The process that delivers hears at once of what is committed in it, and looks twice a second for
what others committed: one small read, whatever the number of requests. Memory is bounded: a line
holds the events that it is sending and as many that are next.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from service.changes import Watch
from service.clock import Clock
from service.duties import Duties
from service.endpoints import Endpoint
from service.events import payload_of
from service.metadata.base import MetadataError
from service.metadata.outbox import Due, Outbox, Verdict
from service.metrics import Metrics
from service.outward import Result, Sender, Unsent

log = structlog.get_logger(__name__)

_DELIVERIES: Final = "deliveries"
#: events that are on their way to one endpoint at once
CONCURRENCY: Final = 8
#: until an answer must be there
TIMEOUT_SECONDS = 15.0
#: how often a line looks for what other processes committed, and for what has become due
LOOK_SECONDS = 0.5
#: how often the backlog is counted
_COUNT_SECONDS: Final = 5.0
#: how long an event may still be under way when the process stops; it is sent again otherwise
_END_SECONDS: Final = 1.0
#: events taken in at once; bounds a transaction
_BATCH: Final = 200
#: between two of these transactions, which wait for the disk while other processes wait for the database
_GATHER_SECONDS: Final = 0.02
_MINUTE: Final = 60.0
_HOUR: Final = 60 * _MINUTE
#: between a try and the next: ten tries in just under three days
GAPS: Final = (
    5.0, _MINUTE, 5 * _MINUTE, 30 * _MINUTE, 2 * _HOUR, 6 * _HOUR, 12 * _HOUR, 24 * _HOUR, 27 * _HOUR,
)  # fmt: skip
#: each is longer or shorter by up to so much of itself, lest all that failed at once come back at once
_JITTER: Final = 0.1


def again_at(tries: int, now: float, chance: float) -> float | None:
    """When the next try is due after so many; None: that was the last.

    Args:
        chance: from 0 to 1.
    """
    if tries > len(GAPS):
        return None
    return now + GAPS[tries - 1] * (1 + _JITTER * (2 * chance - 1))


class Delivery:
    """The lines of all endpoints.

    Args:
        endpoints: each with a sender of its own, so that none can use up what another needs.
        chance: draws from [0, 1), for the jitter.
    """

    def __init__(
        self,
        outbox: Outbox,
        endpoints: Sequence[tuple[Endpoint, Sender]],
        clock: Clock,
        metrics: Metrics,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._outbox = outbox
        self._clock = clock
        self._metrics = metrics
        self._lines = [_Line(outbox, sender, endpoint, clock, metrics, chance) for endpoint, sender in endpoints]
        metrics.expect_endpoints([line.endpoint.id for line in self._lines])

    def wake(self) -> None:
        """An event was committed in this process. Costs nothing where another one delivers."""
        for line in self._lines:
            line.wake()

    async def run(self, duties: Duties) -> None:
        """Delivers while this process has the duty; until cancelled."""
        while True:
            async with duties.held(_DELIVERIES) as lost:
                works = [asyncio.create_task(work) for work in (*(line.run() for line in self._lines), self._count())]
                try:
                    await lost.wait()
                finally:
                    for work in works:
                        work.cancel()
                    await asyncio.wait(works)

    async def _count(self) -> None:
        while True:
            try:
                for line in self._lines:
                    backlog = await self._outbox.backlog(line.endpoint.id)
                    age = 0.0 if backlog.oldest_at is None else max(0.0, self._clock.now() - backlog.oldest_at)
                    self._metrics.outbox(line.endpoint.id, backlog.pending, age)
            except MetadataError as error:
                log.warning("backlog_unknown", reason=str(error))
            await asyncio.sleep(_COUNT_SECONDS)


class _Line:
    """What goes to one endpoint."""

    def __init__(
        self,
        outbox: Outbox,
        sender: Sender,
        endpoint: Endpoint,
        clock: Clock,
        metrics: Metrics,
        chance: Callable[[], float],
    ) -> None:
        self.endpoint = endpoint
        self._outbox = outbox
        self._sender = sender
        self._clock = clock
        self._metrics = metrics
        self._chance = chance
        self._watch = Watch()
        self._active = True
        #: by the monotonic clock
        self._taken_at = -math.inf
        #: by file
        self._sending: dict[str, asyncio.Task[None]] = {}

    def wake(self) -> None:
        self._watch.wake()

    async def run(self) -> None:
        """Sends what is due; until cancelled, and what is under way then has a moment to end."""
        try:
            while True:
                pause = await self._step()
                if pause > 0:
                    await self._watch.wait(pause)
        finally:
            await self._end()

    async def _step(self) -> float:
        """After how many seconds at most there may be more to do."""
        # what ends while it is asked for may still stand there as due
        busy = set(self._sending)
        if len(busy) >= CONCURRENCY:
            return LOOK_SECONDS
        try:
            outlook = await self._outbox.outlook(self.endpoint.id, now=self._clock.now(), limit=CONCURRENCY + len(busy))
            self._look_at(active=outlook.active)
            for due in outlook.due:
                busy |= self._sending.keys()
                if due.file_id not in busy and len(self._sending) < CONCURRENCY:
                    self._begin(due)
            if not outlook.news:
                return LOOK_SECONDS
            wait = self._taken_at + _GATHER_SECONDS - self._clock.monotonic()
            if wait <= 0:
                self._taken_at = self._clock.monotonic()
                await self._outbox.take_in(self.endpoint.id, self.endpoint.wants, now=self._clock.now(), limit=_BATCH)
        except MetadataError as error:
            log.warning("outbox_unread", endpoint=self.endpoint.id, reason=str(error))
            return LOOK_SECONDS
        except Exception:
            # whatever one event is, others go on
            log.exception("line_failed", endpoint=self.endpoint.id)
            return LOOK_SECONDS
        return wait

    def _look_at(self, *, active: bool) -> None:
        """Once: that nothing is sent, which a 410 began, or a newer service whose settings leave the endpoint out."""
        if self._active and not active:
            log.warning("endpoint_inactive", endpoint=self.endpoint.id)
        self._active = active

    def _begin(self, due: Due) -> None:
        task = asyncio.create_task(self._send(due))
        self._sending[due.file_id] = task
        task.add_done_callback(lambda _: self._over(due.file_id))

    def _over(self, file_id: str) -> None:
        del self._sending[file_id]
        self._watch.wake()

    async def _end(self) -> None:
        if self._sending:
            await asyncio.wait(set(self._sending.values()), timeout=_END_SECONDS)
        left = set(self._sending.values())
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)

    async def _send(self, due: Due) -> None:
        began = self._clock.monotonic()
        result, detail = await self._try(due)
        self._metrics.webhook_delivered(self.endpoint.id, result)
        now = self._clock.now()
        next_at = None if result == "ok" else again_at(due.attempts + 1, now, self._chance())
        told = log.bind(
            endpoint=self.endpoint.id,
            event_id=due.event.id,
            result=result,
            came=detail,
            tries=due.attempts + 1,
            seconds=round(self._clock.monotonic() - began, 3),
        )
        # the line of the file waits until this is recorded: sent again and again would be worse
        while not await self._recorded(due, result, next_at, now):  # noqa: ASYNC110 - nothing here tells when it can be
            await asyncio.sleep(LOOK_SECONDS)
        if result == "gone":
            told.warning(
                "endpoint_disabled", detail="it answered 410; `attachd events enable`, or another url, ends it"
            )
        elif result == "ok":
            told.debug("event_delivered")
        elif next_at is None:
            told.error("event_given_up", detail="`attachd events replay` sends it again")
        else:
            told.info("event_postponed", again_in=round(next_at - now))

    async def _try(self, due: Due) -> tuple[Result, str]:
        """What it came to, in a word, and in more for the log."""
        try:
            payload = json.dumps(payload_of(due.event), separators=(",", ":"))
            answer = await self._sender.post(self.endpoint, due.event.id, payload, seconds=TIMEOUT_SECONDS)
        except Unsent as error:
            return error.result, error.detail
        except Exception:
            log.exception("event_send_failed", endpoint=self.endpoint.id, event_id=due.event.id)
            return "error", "a fault of attachd"
        return answer.result, str(answer.status)

    async def _recorded(self, due: Due, result: Result, next_at: float | None, now: float) -> bool:
        try:
            if result == "gone":
                await self._outbox.disable(self.endpoint.id, now=now)
            else:
                verdict = Verdict(result, delivered=result == "ok", again_at=next_at)
                await self._outbox.settle(self.endpoint.id, due, verdict, now=now)
        except MetadataError as error:
            log.warning("delivery_unrecorded", endpoint=self.endpoint.id, event_id=due.event.id, reason=str(error))
            return False
        return True
