"""The migrations, run by Alembic; apart from `migrate`, which seldom needs them."""

from __future__ import annotations

from typing import Final

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from service.metadata.base import SchemaMismatch

#: as a package resource, so that it is found wherever the distribution is installed
_SCRIPTS: Final = "service.metadata:migrations"


def upgrade(connection: Connection, to: str = "head") -> None:
    """All migrations that the database has not had, up to that revision, are done in the connection's transaction.

    Raises:
        SchemaMismatch: permanent; the schema is of a newer version.
    """
    config = Config()
    config.set_main_option("script_location", _SCRIPTS)
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, to)
    except CommandError as error:
        raise SchemaMismatch("the schema of the database is of a newer version; run that version") from error
