"""What each owner has: one row of counters, moved in the transactions of what they count.

An upload without an owner touches no row. `uploads.reserved` never changes: what a row counts for
follows from it and from the state, which is how `miscounted` knows what the counters should be.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, and_, bindparam, case, delete, func, insert, literal, or_, select, union_all, update

from service.metadata.base import QuotaExceeded
from service.metadata.control import Usage
from service.metadata.prepared import Prepared, PreparedPut
from service.metadata.reads import READY_PARTIAL, in_states, up
from service.metadata.schema import files, owners
from service.model import ConcatKind, File, Quota, State, Upload

_PENDING = in_states((State.RECEIVING, State.FINISHING))


def _reserve(statement: Any) -> Any:
    """One statement: the row is made, or counts one more if that is within the quota."""
    there, given = owners.c, statement.excluded
    return statement.on_conflict_do_update(
        index_elements=[there.issuer, there.owner],
        set_={"pending": there.pending + given.pending, "reserved": there.reserved + given.reserved},
        where=and_(
            there.file_bytes + there.reserved <= bindparam("most_bytes") - given.reserved,
            there.pending < bindparam("most_pending"),
        ),
    )


_RESERVE = PreparedPut(owners, _reserve)
_MOVE = Prepared(
    update(owners)
    .where(owners.c.issuer == bindparam("of_issuer"), owners.c.owner == bindparam("of_owner"))
    .values(
        files=owners.c.files + bindparam("more_files"),
        file_bytes=owners.c.file_bytes + bindparam("more_bytes"),
        pending=owners.c.pending + bindparam("more_pending"),
        reserved=owners.c.reserved + bindparam("more_reserved"),
    )
)
_USAGE = Prepared(select(owners).where(owners.c.issuer == bindparam("issuer"), owners.c.owner == bindparam("owner")))
_FORGET_EMPTY = delete(owners).where(
    owners.c.issuer == bindparam("of_issuer"),
    owners.c.owner == bindparam("of_owner"),
    owners.c.files == 0,
    owners.c.pending == 0,
    owners.c.reserved == 0,
)
_of_files = (
    select(
        files.c.issuer,
        files.c.owner,
        func.count().label("files"),
        func.sum(files.c.size).label("file_bytes"),
        literal(0).label("pending"),
        literal(0).label("reserved"),
    )
    .where(files.c.owner.is_not(None), files.c.deleted_at.is_(None))
    .group_by(files.c.issuer, files.c.owner)
)
_of_uploads = (
    select(
        up.issuer,
        up.owner,
        literal(0),
        literal(0),
        func.sum(case((_PENDING, 1), else_=0)),
        func.sum(up.reserved),
    )
    .where(up.owner.is_not(None), or_(_PENDING, READY_PARTIAL))
    .group_by(up.issuer, up.owner)
)
_both = union_all(_of_files, _of_uploads).subquery()
_RIGHT = select(
    _both.c.issuer,
    _both.c.owner,
    func.sum(_both.c.files).label("files"),
    func.sum(_both.c.file_bytes).label("file_bytes"),
    func.sum(_both.c.pending).label("pending"),
    func.sum(_both.c.reserved).label("reserved"),
).group_by(_both.c.issuer, _both.c.owner)
_COUNTED = select(owners)


def reserve(connection: Connection, upload: Upload, quota: Quota) -> None:
    """The new upload counts. Raises QuotaExceeded."""
    if upload.terms.owner is None:
        return
    if upload.reserved > quota.most_bytes or quota.most_pending < 1:
        raise QuotaExceeded("the upload alone is more than the quota")
    bound = {
        "issuer": upload.terms.issuer,
        "owner": upload.terms.owner,
        "files": 0,
        "file_bytes": 0,
        "pending": 1,
        "reserved": upload.reserved,
        "most_bytes": quota.most_bytes,
        "most_pending": quota.most_pending,
    }
    if _RESERVE.run(connection, bound) != 1:
        raise QuotaExceeded("the owner has no room left")


def published(connection: Connection, row: Any, file: File | None) -> None:
    """The upload is a file, or a whole partial, whose bytes stay reserved until it is over."""
    if row.owner is None:
        return
    if file is None:
        _move(connection, row.issuer, row.owner, pending=-1)
    else:
        size = file.manifest.size
        _move(connection, row.issuer, row.owner, files=1, file_bytes=size, pending=-1, reserved=-row.reserved)


def began_as_file(connection: Connection, upload: Upload, file: File) -> None:
    """As `published`, of an upload that was `reserve`d in the same transaction."""
    owner = upload.terms.owner
    if owner is not None:
        size = file.manifest.size
        _move(connection, file.issuer, owner, files=1, file_bytes=size, pending=-1, reserved=-upload.reserved)


def quarantined(connection: Connection, file: File) -> None:
    """The upload has `ended`, and what it brought is held all the same."""
    if file.owner is not None:
        _move(connection, file.issuer, file.owner, files=1, file_bytes=file.manifest.size)


def ended(connection: Connection, before: Any) -> None:
    """`before`: the upload's row as it was. One that is a file gives back nothing: its file does."""
    if before.owner is None:
        return
    if before.state != State.READY:
        _move(connection, before.issuer, before.owner, pending=-1, reserved=-before.reserved)
    elif before.concat_kind == ConcatKind.PARTIAL:
        _move(connection, before.issuer, before.owner, reserved=-before.reserved)


def deleted(connection: Connection, row: Any) -> None:
    """`row`: of the file."""
    if row.owner is not None:
        _move(connection, row.issuer, row.owner, files=-1, file_bytes=-row.size)


def _move(
    connection: Connection, issuer: str, owner: str, *, files: int = 0, file_bytes: int = 0, pending: int = 0,
    reserved: int = 0,
) -> None:  # fmt: skip
    bound = {
        "of_issuer": issuer,
        "of_owner": owner,
        "more_files": files,
        "more_bytes": file_bytes,
        "more_pending": pending,
        "more_reserved": reserved,
    }
    _MOVE.run(connection, bound)


def usage(connection: Connection, issuer: str, owner: str) -> Usage:
    row = _USAGE.first(connection, {"issuer": issuer, "owner": owner})
    return Usage() if row is None else _usage(row)


def _usage(row: Any) -> Usage:
    return Usage(int(row.files), int(row.file_bytes), int(row.pending), int(row.reserved))


def forget_empty(connection: Connection, issuer: str, owner: str) -> None:
    connection.execute(_FORGET_EMPTY, {"of_issuer": issuer, "of_owner": owner})


def miscounted(connection: Connection) -> dict[tuple[str, str], tuple[Usage, Usage]]:
    right = {(row.issuer, row.owner): _usage(row) for row in connection.execute(_RIGHT)}
    counted = {(row.issuer, row.owner): _usage(row) for row in connection.execute(_COUNTED)}
    nothing = Usage()
    pairs = {who: (counted.get(who, nothing), right.get(who, nothing)) for who in right.keys() | counted.keys()}
    return {who: (is_, should) for who, (is_, should) in pairs.items() if is_ != should}


def recount(connection: Connection) -> int:
    wrong = miscounted(connection)
    for (issuer, owner), (_, right) in wrong.items():
        connection.execute(delete(owners).where(owners.c.issuer == issuer, owners.c.owner == owner))
        values = {
            "files": right.files,
            "file_bytes": right.file_bytes,
            "pending": right.pending,
            "reserved": right.reserved,
        }
        connection.execute(insert(owners).values(issuer=issuer, owner=owner, **values))
    return len(wrong)
