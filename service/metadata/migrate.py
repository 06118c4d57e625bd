"""Brings a database to the schema of this version. Blocks; for a command, not for a running loop.

An empty one gets it as `schema` declares it; the migrations are for one that was made by an earlier
version. Both come to the same, which a test holds. So a service that is new somewhere does without
Alembic, which is a tenth of its memory.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, insert, inspect
from sqlalchemy.exc import DBAPIError

from service.metadata.base import MetadataUnavailable
from service.metadata.engine import make_engine, parse_url
from service.metadata.schema import REVISION, identity, metadata, revision
from service.metadata.worker import unavailable

#: A migration may wait for, and make wait, longer than a request would.
BUSY_SECONDS: Final = 60.0


def migrate(url: str, *, busy_seconds: float = BUSY_SECONDS) -> None:
    """The schema is that of this version; nothing happens if it was.

    One transaction: it is all there or nothing is, and of several processes that call this at
    once the others wait and find the work done. A missing SQLite file is made, with its
    directory.

    Args:
        busy_seconds: how long it waits for another process that holds the database.

    Raises:
        MetadataUnavailable: worth a retry.
        MetadataDamaged: permanent; the database is broken, or the file is none.
        SchemaMismatch: permanent; the schema is of a newer version.
        MetadataError: permanent; such a database cannot work.
    """
    target = parse_url(url)
    if target.get_backend_name() == "sqlite":
        try:
            Path(str(target.database)).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise MetadataUnavailable(f"the directory of the database cannot be made: {error}") from error
    engine = make_engine(target, writes=True, durability="always", busy_seconds=busy_seconds, creates=True)
    try:
        with engine.begin() as connection:
            if inspect(connection).get_table_names():
                # brings Alembic along
                from service.metadata.upgrade import upgrade  # noqa: PLC0415

                upgrade(connection)
            else:
                _make(connection)
    except DBAPIError as error:
        raise unavailable(error) from error


def _make(connection: Connection) -> None:
    """The schema is in the database, which was empty."""
    metadata.create_all(connection)
    revision.create(connection)
    connection.execute(insert(identity).values(id=secrets.token_hex(16)))
    connection.execute(insert(revision).values(version_num=REVISION))
