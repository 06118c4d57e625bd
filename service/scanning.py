"""Whether a file is free of viruses, and what becomes of one of which nobody can tell.

A file is scanned between its last byte and its being one: nobody can fetch it before, and what was
begun when a process died is begun again by whoever goes on with the upload. Scans are few at a time
and end after a while, whatever the scanner does, so that no upload is held for ever.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import structlog

from service.clock import Clock
from service.metrics import Metrics
from service.model import Verdict
from service.protocol.problems import Problem
from service.scanner import ScanError, Scanner, ScanTooLarge
from service.storage.base import Storage, StorageUnavailable, Stored
from service.units import format_size

log = structlog.get_logger(__name__)

#: how many scans of one process run at once
AT_ONCE: Final = 4
#: how long one may take, reading included; clamd gives up a file by itself after two minutes (`MaxScanTime`)
SCAN_SECONDS: Final = 150.0
#: how long an upload waits for its turn before it makes way for others, and is come back to
TURN_SECONDS: Final = 60.0


#: after one that took too long nothing that may wait is scanned for a while: each would wait as long again
PAUSE_SECONDS: Final = 30.0


class ScanPostponed(StorageUnavailable):
    """Worth a retry: the file must be scanned, and cannot be now. To whoever finishes it that is as
    a storage that is away.
    """


@dataclass(frozen=True, slots=True)
class Scanned:
    """What is known of a file, and why there must be none of it, if so."""

    verdict: Verdict
    problem: Problem | None = None
    #: what was found in an infected one
    signature: str | None = None


@dataclass(frozen=True, slots=True)
class ScanRules:
    """What holds for files without a verdict.

    Args:
        most_bytes: files of more are not scanned.
        takes_large: they are kept all the same.
        takes_unscanned: so are those that the scanner failed on; else they wait for it.
    """

    most_bytes: int
    takes_large: bool
    takes_unscanned: bool


class Scanning:
    """Scans stored files, for one process."""

    def __init__(
        self,
        scanner: Scanner,
        rules: ScanRules,
        storage: Storage,
        clock: Clock,
        metrics: Metrics,
        *,
        scan_seconds: float = SCAN_SECONDS,
        turn_seconds: float = TURN_SECONDS,
    ) -> None:
        self._scanner = scanner
        self._rules = rules
        self._storage = storage
        self._clock = clock
        self._metrics = metrics
        self._scan_seconds = scan_seconds
        self._turn_seconds = turn_seconds
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._paused_until = -math.inf

    async def judge(self, stored: Stored) -> Scanned:
        """What is known of the file after a scan, if there has to be one.

        Raises:
            StorageError: worth a retry; the file cannot be read. So ScanPostponed.
        """
        if stored.size > self._rules.most_bytes:
            return self._too_large(self._rules.most_bytes)
        if self._clock.monotonic() < self._paused_until:
            raise ScanPostponed("the scanner took too long a moment ago")
        try:
            async with asyncio.timeout(self._turn_seconds):
                await self._turns.acquire()
        except TimeoutError:
            raise ScanPostponed("other files are being scanned") from None
        try:
            return await self._scanned(stored)
        finally:
            self._turns.release()

    async def _scanned(self, stored: Stored) -> Scanned:
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._scan_seconds):
                signature = await self._scan(stored)
        except ScanTooLarge as error:
            log.warning("scan_limit_differs", key=stored.key, size=stored.size, reason=str(error))
            return self._too_large(stored.size - 1)
        except (ScanError, TimeoutError) as error:
            self._metrics.scanned("failed", self._clock.monotonic() - began)
            log.warning("scan_failed", key=stored.key, size=stored.size, reason=str(error) or "it took too long")
            if self._rules.takes_unscanned:
                return Scanned(Verdict.UNSCANNED)
            if isinstance(error, TimeoutError):
                self._paused_until = self._clock.monotonic() + PAUSE_SECONDS
            raise ScanPostponed("the file could not be scanned") from error
        self._metrics.scanned("clean" if signature is None else "infected", self._clock.monotonic() - began)
        if signature is None:
            return Scanned(Verdict.CLEAN)
        return Scanned(Verdict.INFECTED, Problem("infected", "a virus was found in the file"), signature)

    async def _scan(self, stored: Stored) -> str | None:
        async with aclosing(self._pieces(stored)) as pieces:
            return await self._scanner.scan(pieces)

    async def _pieces(self, stored: Stored) -> AsyncGenerator[bytes]:
        async with self._storage.open_file(stored.key) as opened:
            async for piece in opened.read(0, stored.size):
                yield piece

    def _too_large(self, most: int) -> Scanned:
        self._metrics.scanned("skipped_size", None)
        if self._rules.takes_large:
            return Scanned(Verdict.SKIPPED_SIZE)
        words = f"files of more than {format_size(most)} cannot be scanned for viruses, so none are taken"
        return Scanned(Verdict.SKIPPED_SIZE, Problem("too-large", words))
