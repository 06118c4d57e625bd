"""A thread of its own for the database, where what waits is committed together.

Work is a function of a connection, and of nothing else that changes: it may be run more than
once, and only the last time counts. The thread takes all that waits (up to a limit), runs it in
one transaction, commits once, and only then tells the callers: under load many acknowledged
steps share one commit.

1. All goes well: no savepoint was needed, which is the rule.
2. A work raises: the group is taken back and run again with a savepoint for each work, so that
   the refused one leaves nothing and its neighbours do not notice.
3. The driver fails inside a work: the whole transaction may be gone (SQLite ends it when the disk
   is full), so the group is taken back and each work is run again alone.
4. The commit fails: all fail, nobody was told anything yet.
5. Another process holds the database for longer than is waited for: the group fails, and with it
   whatever came meanwhile, which has waited for the same and would only wait again.

A caller that is cancelled drops the answer only. Work that was not begun is then left out; work
that was begun is committed or not like any other.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError

from service.metadata.base import Conflict, MetadataDamaged, MetadataError, MetadataUnavailable
from service.metadata.engine import Transactions

T = TypeVar("T")

_GROUP: Final = 64
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


@dataclass(frozen=True, slots=True)
class _Job:
    work: Callable[[Connection], Any]
    future: asyncio.Future[Any]
    durable: bool


@dataclass(frozen=True, slots=True)
class _Outcome:
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class _WorkRefused(Exception):
    """A work of a group raised; run the group again with savepoints."""


class _WorkBroke(Exception):
    """The driver failed inside a work, before the commit; the transaction is gone."""


def unavailable(error: BaseException) -> MetadataError:
    """What a driver's error is to a caller, who gets it as the cause."""
    cause = _driver_error(error)
    if _code(cause) in _DAMAGED:
        return damaged(str(cause))
    return MetadataUnavailable(f"the metadata store cannot be used now: {cause}")


def damaged(how: str) -> MetadataDamaged:
    """What SQLite said of it, and what to do."""
    return MetadataDamaged(f"the database is damaged ({how}); put a good copy in its place")


def _driver_error(error: BaseException | None) -> BaseException | None:
    return error.orig if isinstance(error, DBAPIError) else error


def _code(error: BaseException | None) -> int | None:
    """SQLite's primary result code; None if it is an error of something else."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


class Worker:
    """Runs work on a thread with one connection, in groups. Started and stopped by its owner."""

    def __init__(self, make_engine: Callable[[], Engine], name: str, *, writes: bool) -> None:
        """`make_engine` is called on the thread: it imports a driver and looks at paths."""
        self._make_engine = make_engine
        self._driver_errors: tuple[type[Exception], ...] = (DBAPIError,)
        self._integrity_errors: tuple[type[Exception], ...] = ()
        self._name = name
        self._writes = writes
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._opened: tuple[Connection, Transactions] | None = None

    def start(self) -> None:
        """Work is taken from now on, from callers on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        # A daemon: a process that gives up without close() must not hang on an idle thread.
        self._thread = threading.Thread(target=self._main, name=self._name, daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """What was queued before is done, and the connection is closed."""
        if self._thread is None:
            return
        self._thread = None
        self._queue.put(None)
        await self._stopped.wait()

    async def run(self, work: Callable[[Connection], T], *, durable: bool = False) -> T:
        """What work returned, committed. `durable`: also against a crash of the machine."""
        if self._thread is None:
            raise MetadataUnavailable("the metadata store is not open")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(_Job(work, future, durable))
        return await future

    def _main(self) -> None:
        running = True
        while running:
            jobs, running = self._take()
            jobs = [job for job in jobs if not job.future.cancelled()]
            if not jobs:
                continue
            outcomes = self._run_group(jobs)
            cause = outcomes[-1].error.__cause__ if outcomes[-1].error is not None else None
            if running and _code(_driver_error(cause)) == sqlite3.SQLITE_BUSY:
                late, running = self._take_late()
                outcomes += self._failed(late, cause)
            self._tell(_settle, outcomes)
        self._drop_connection()
        self._tell(self._stopped.set)

    def _take(self) -> tuple[list[_Job], bool]:
        """What waits, at least one job; and whether to go on after it."""
        job = self._queue.get()
        jobs: list[_Job] = []
        while job is not None:
            jobs.append(job)
            if len(jobs) == _GROUP or self._queue.empty():
                return jobs, True
            job = self._queue.get_nowait()
        return jobs, False

    def _take_late(self) -> tuple[list[_Job], bool]:
        """What has come since, if anything; and whether to go on after it."""
        jobs: list[_Job] = []
        while not self._queue.empty():
            job = self._queue.get_nowait()
            if job is None:
                return jobs, False
            jobs.append(job)
        return jobs, True

    def _run_group(self, jobs: list[_Job]) -> list[_Outcome]:
        try:
            try:
                return self._transaction(jobs, savepoints=False)
            except _WorkRefused:
                return self._transaction(jobs, savepoints=True)
        except _WorkBroke as broke:
            self._drop_connection()
            if len(jobs) > 1:
                return [outcome for job in jobs for outcome in self._run_group([job])]
            return self._failed(jobs, broke.__cause__)
        except BaseException as error:  # noqa: BLE001 - the thread outlives whatever a group meets
            self._drop_connection()
            return self._failed(jobs, error)

    def _transaction(self, jobs: list[_Job], *, savepoints: bool) -> list[_Outcome]:
        connection, transactions = self._opened or self._open()
        transactions.begin(durable=any(job.durable for job in jobs))
        outcomes = []
        try:
            for job in jobs:
                if savepoints:
                    connection.exec_driver_sql("SAVEPOINT work")
                outcome = self._attempt(connection, job)
                refused = self._writes and outcome.error is not None
                if refused and savepoints:
                    connection.exec_driver_sql("ROLLBACK TO SAVEPOINT work")
                elif refused and len(jobs) > 1:
                    raise _WorkRefused
                elif refused:
                    transactions.rollback()
                if savepoints:
                    connection.exec_driver_sql("RELEASE SAVEPOINT work")
                outcomes.append(outcome)
            transactions.commit()
        except BaseException:
            with suppress(*self._driver_errors):
                # of a transaction that the driver has given up already
                transactions.rollback()
            raise
        return outcomes

    def _open(self) -> tuple[Connection, Transactions]:
        engine = self._make_engine()
        driver: Any = engine.dialect.loaded_dbapi
        self._driver_errors = (DBAPIError, driver.Error)
        self._integrity_errors = (IntegrityError, driver.IntegrityError)
        connection = engine.connect()
        self._opened = connection, Transactions(connection)
        return self._opened

    def _attempt(self, connection: Connection, job: _Job) -> _Outcome:
        try:
            return _Outcome(job.future, job.work(connection))
        except self._integrity_errors as error:
            conflict = Conflict("another change was there first")
            conflict.__cause__ = error
            return _Outcome(job.future, error=conflict)
        except self._driver_errors as error:
            raise _WorkBroke from error
        except Exception as error:  # noqa: BLE001 - an answer for this caller alone
            return _Outcome(job.future, error=error)

    def _failed(self, jobs: list[_Job], cause: BaseException | None) -> list[_Outcome]:
        """The same error for all, each with an exception of its own: tracebacks are not shared."""
        outcomes = []
        for job in jobs:
            error: MetadataError
            if isinstance(cause, self._driver_errors):
                error = unavailable(cause)
            else:
                error = MetadataError("the metadata store failed")
            error.__cause__ = cause
            outcomes.append(_Outcome(job.future, error=error))
        return outcomes

    def _drop_connection(self) -> None:
        """The next group starts on a fresh connection, whatever state this one is in."""
        opened, self._opened = self._opened, None
        if opened is None:
            return
        connection, _ = opened
        try:
            connection.close()
        except DBAPIError:
            connection.invalidate()

    def _tell(self, callback: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:
            # The loop is closed: nobody is left who could hear it.
            return


def _settle(outcomes: list[_Outcome]) -> None:
    for outcome in outcomes:
        if outcome.future.done():
            continue
        if outcome.error is None:
            outcome.future.set_result(outcome.result)
        else:
            outcome.future.set_exception(outcome.error)
