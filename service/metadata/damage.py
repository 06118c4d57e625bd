"""Looks for damage in a SQLite database: at the start, so that an operator hears of it before clients do.

A page that a disk lost makes the rows on it unreadable, and those behind a lost page of an index
unfindable; SQLite notices when it comes by, which can be weeks later. What is in no backup by then
is lost for good.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Any, Final

from sqlalchemy import Connection

from service.metadata.worker import damaged

#: first the shape of all pages, which is quick, then whether tables and indexes agree
_CHECKS: Final = ("quick_check", "integrity_check")
#: steps of SQLite's machine between two looks at the clock
_STEPS: Final = 10_000


def check(connection: Connection, *, seconds: float) -> None:
    """No damage was found in that time; a large database is not looked at whole.

    Raises:
        MetadataDamaged: permanent; says what SQLite says.
    """
    if connection.dialect.name != "sqlite":
        return
    deadline = time.monotonic() + seconds
    driver: Any = connection.connection.driver_connection
    driver.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
    try:
        for name in _CHECKS:
            # one finding is enough
            (found,) = driver.execute(f"PRAGMA {name}(1)").fetchone()
            if found != "ok":
                raise damaged(" ".join(found.split()))
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
    finally:
        driver.set_progress_handler(None, 0)
