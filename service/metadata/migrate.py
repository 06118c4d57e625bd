"""Brings a database to the schema of this version. Blocks; for a command, not for a running loop."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.exc import DBAPIError

from service.metadata.base import MetadataUnavailable, SchemaMismatch
from service.metadata.engine import make_engine, parse_url
from service.metadata.worker import unavailable

#: As a package resource, so that it is found wherever the distribution is installed.
_SCRIPTS = "service.metadata:migrations"
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
    config = Config()
    config.set_main_option("script_location", _SCRIPTS)
    engine = make_engine(target, writes=True, durability="always", busy_seconds=busy_seconds, creates=True)
    try:
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except CommandError as error:
        raise SchemaMismatch("the schema of the database is of a newer version; run that version") from error
    except DBAPIError as error:
        raise unavailable(error) from error
