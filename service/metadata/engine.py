"""Engines for a database URL: what SQLite and its driver must be told before they do as we mean.

The driver's own habit is to begin a transaction at the first INSERT or UPDATE only, which leaves
SAVEPOINT and SELECT outside of it. So it is switched off (`isolation_level=None`) and SQLAlchemy
begins: at once with the write lock where the transaction is to write (a lock taken later, over an
older snapshot, fails at once whatever the time-out), or with a snapshot where it is to read.
https://docs.sqlalchemy.org/en/21/dialects/sqlite.html#sqlite-enabling-transactions
"""

from __future__ import annotations

import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url

from service.metadata.base import MetadataError

Durability = Literal["complete", "always", "none"]

#: `PRAGMA synchronous` for a transaction: (without a durable step in it, with one). In WAL mode
#: NORMAL survives a crash of every process, FULL also one of the machine.
_SYNCHRONOUS: Final[dict[Durability, tuple[str, str]]] = {
    "none": ("OFF", "OFF"),
    "complete": ("NORMAL", "FULL"),
    "always": ("FULL", "FULL"),
}
#: What a write-ahead log that once grew large shrinks back to, bytes.
_LOG_LIMIT: Final = 64 * 1024 * 1024
_AGAIN_SECONDS: Final = 0.01
#: where a connection's record has how its transactions begin: the statement, and `synchronous` without and with need
_WAYS: Final = "ways"
#: and that somebody else begins and ends them
_BY_HAND: Final = "by hand"


def parse_url(text: str) -> URL:
    """Raises MetadataError for a database that cannot work."""
    url = make_url(text)
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        # Readers, writer and other processes meet in the file.
        raise MetadataError("a SQLite database must be a file: sqlite:///PATH")
    return url


def make_engine(
    url: URL,
    *,
    writes: bool,
    durability: Durability,
    busy_seconds: float,
    creates: bool = False,
    read_only: bool = False,
) -> Engine:
    """An engine for one thread that keeps one connection.

    A SQLite file that is not there is made only where the caller `creates` it: where a disk is not
    mounted, nothing may grow in its place.

    Bound values stay out of error texts (`hide_parameters`): file names and tokens' ids are
    among them.

    Args:
        read_only: SQLite opens the file so that nothing can change a byte of it, nor fold the log
            of a process that died into it; beside it a log and its index may appear.
    """
    if url.get_backend_name() != "sqlite":
        return create_engine(url, poolclass=NullPool, hide_parameters=True)
    mode = "ro" if read_only else "rwc" if creates else "rw"
    # not by the URL: its query would end up in error texts
    connect = partial(
        sqlite3.connect,
        f"file:{quote(str(Path(str(url.database)).absolute()))}?mode={mode}",
        uri=True,
        timeout=busy_seconds,
        isolation_level=None,
        check_same_thread=False,
    )
    engine = create_engine(url, poolclass=NullPool, hide_parameters=True, creator=connect)
    relaxed, durable = _SYNCHRONOUS[durability]
    begin = "BEGIN IMMEDIATE" if writes else "BEGIN"

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, record: Any) -> None:
        if not read_only:
            _write_ahead(connection, busy_seconds)
            connection.execute(f"PRAGMA journal_size_limit={_LOG_LIMIT}")
        connection.execute(f"PRAGMA synchronous={relaxed}")
        record.info[_WAYS] = (begin, relaxed, durable)

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        if _BY_HAND not in connection.info:
            connection.exec_driver_sql(begin)

    return engine


class Transactions:
    """Those of one connection, begun and ended through its driver.

    What SQLAlchemy does around each is a third of the cost of a small step. It is left to believe
    in a single one that never ends, and sees the statements inside.
    """

    def __init__(self, connection: Connection) -> None:
        # the driver's, which has `commit` and `rollback` whatever the database
        self._driver: Any = connection.connection.driver_connection
        self._begin, self._relaxed, self._durable = connection.info.get(_WAYS, (None, "", ""))
        self._synchronous = self._relaxed
        connection.info[_BY_HAND] = True
        connection.begin()

    def begin(self, *, durable: bool) -> None:
        """What is committed next survives what its durability says."""
        wanted = self._durable if durable else self._relaxed
        if self._synchronous != wanted:
            # Only between transactions does this pragma do anything.
            self._driver.execute(f"PRAGMA synchronous={wanted}")
            self._synchronous = wanted
        if self._begin is not None:
            self._driver.execute(self._begin)

    def commit(self) -> None:
        self._driver.commit()

    def rollback(self) -> None:
        self._driver.rollback()


def _write_ahead(connection: Any, busy_seconds: float) -> None:
    """The database has a write-ahead log.

    Of two connections that give it its first one at once SQLite refuses one without waiting, as
    each would wait for the other.
    """
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                raise
            time.sleep(_AGAIN_SECONDS)
        else:
            return
