"""Who has which duty, until when: one row each, taken by compare-and-set."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, or_

from service.metadata.prepared import PreparedPut
from service.metadata.schema import duties


def _take(statement: Any) -> Any:
    """One statement: the row is made, or changes hands if it may."""
    there, given = duties.c, statement.excluded
    return statement.on_conflict_do_update(
        index_elements=[there.name],
        set_={"owner": given.owner, "until": given.until},
        where=or_(there.owner == given.owner, there.until <= bindparam("now")),
    )


_TAKE = PreparedPut(duties, _take)
_GIVE_BACK = delete(duties).where(duties.c.name == bindparam("duty"), duties.c.owner == bindparam("of_owner"))
_DROP = delete(duties).where(func.substr(duties.c.owner, 1, bindparam("prefix_length")) == bindparam("prefix"))


def take(connection: Connection, name: str, owner: str, now: float, until: float) -> bool:
    return _TAKE.run(connection, {"name": name, "owner": owner, "until": until, "now": now}) == 1


def give_back(connection: Connection, name: str, owner: str) -> None:
    connection.execute(_GIVE_BACK, {"duty": name, "of_owner": owner})


def drop(connection: Connection, prefix: str) -> None:
    connection.execute(_DROP, {"prefix": prefix, "prefix_length": len(prefix)})
