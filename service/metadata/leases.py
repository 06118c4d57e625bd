"""The lease columns of an upload: who may write it, until when, and whether somebody asks."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import BindParameter, Connection, bindparam, case, func, or_, select, update

from service.metadata.base import Asked, Conflict, Lease, LeaseHeld
from service.metadata.prepared import Prepared
from service.metadata.reads import LIVE, ledger, load_uploads, up, upload_row
from service.metadata.schema import uploads
from service.model import State, Upload, UploadId

_HELD = up.lease_owner.is_not(None)
#: Not LIKE: SQLite's takes `a` for `A`, and a token may hold its wildcards.
_OF_OWNERS = func.substr(up.lease_owner, 1, bindparam("prefix_length")) == bindparam("prefix")
FREE = {"lease_owner": None, "lease_until": None, "lease_asked": Asked.NOT}
_ACQUIRE = Prepared(
    update(uploads)
    .where(
        up.id == bindparam("upload_id"),
        LIVE,
        or_(
            up.lease_owner.is_(None),
            up.lease_owner == bindparam("owner_token"),
            up.lease_until <= bindparam("now"),
        ),
    )
    .values(
        lease_owner=bindparam("owner_token"), lease_until=bindparam("until"), lease_asked=Asked.NOT, epoch=up.epoch + 1
    )
    .returning(uploads)
)
_HOW: BindParameter[int] = bindparam("how")
_ASK = (
    update(uploads)
    .where(up.id == bindparam("upload_id"), _HELD)
    .values(lease_asked=case((up.lease_asked < _HOW, _HOW), else_=up.lease_asked))
)
_KEEP = (
    update(uploads)
    .where(up.id == bindparam("upload_id"), _HELD, _OF_OWNERS, up.lease_asked == Asked.IF_SILENT)
    .values(lease_asked=Asked.NOT)
)
_RELEASE = Prepared(
    update(uploads)
    .where(
        up.id == bindparam("upload_id"),
        up.lease_owner == bindparam("owner_token"),
        up.epoch == bindparam("of_epoch"),
    )
    .values(FREE)
)
_RENEW = update(uploads).where(_HELD, _OF_OWNERS).values(lease_until=bindparam("until"))
_ASKED = Prepared(select(up.id, up.lease_asked).where(_HELD, up.lease_asked > Asked.NOT, _OF_OWNERS))
_LEASE = Prepared(
    select(up.lease_owner, up.lease_until, up.lease_asked, up.epoch).where(up.id == bindparam("upload_id"), _HELD)
)
_DROP = update(uploads).where(_HELD, _OF_OWNERS).values(FREE)


def acquire(
    connection: Connection,
    upload_id: UploadId,
    owner: str,
    now: float,
    until: float,
    judge: Callable[[Upload], object] | None,
) -> tuple[Lease, Upload] | Exception:
    """What speaks against it is returned, not raised: nothing has changed, so its neighbours need not be run again."""
    if judge is not None and (row := upload_row(connection, upload_id)) is not None:
        try:
            judge(load_uploads(connection, [row])[0])
        except Exception as error:  # noqa: BLE001 - it is the caller's
            return error
    row = _ACQUIRE.first(connection, {"upload_id": upload_id, "owner_token": owner, "now": now, "until": until})
    if row is not None:
        parts = ledger(connection, upload_id) if row.offset else ()
        held = Lease(upload_id, owner, row.epoch, until, ledger=parts, tail=row.tail)
        return held, load_uploads(connection, [row])[0]
    row = upload_row(connection, upload_id)
    if row is None or not State(row.state).live:
        return Conflict("there is no such live upload")
    return LeaseHeld(row.lease_owner, row.lease_until)


def ask(connection: Connection, upload_id: UploadId, how: Asked) -> None:
    connection.execute(_ASK, {"upload_id": upload_id, "how": how})


def keep(connection: Connection, upload_id: UploadId, prefix: str) -> None:
    connection.execute(_KEEP, {"upload_id": upload_id, "prefix": prefix, "prefix_length": len(prefix)})


def asked(connection: Connection, prefix: str) -> tuple[tuple[UploadId, Asked], ...]:
    """Sorted here: to sort by id SQLite would walk the table along its key instead of what is leased."""
    found = _ASKED.all(connection, {"prefix": prefix, "prefix_length": len(prefix)})
    return tuple(sorted((UploadId(row.id), Asked(row.lease_asked)) for row in found))


def lease(connection: Connection, upload_id: UploadId) -> Lease | None:
    row = _LEASE.first(connection, {"upload_id": upload_id})
    if row is None:
        return None
    return Lease(upload_id, row.lease_owner, row.epoch, row.lease_until, Asked(row.lease_asked))


def renew(connection: Connection, prefix: str, until: float) -> None:
    connection.execute(_RENEW, {"prefix": prefix, "prefix_length": len(prefix), "until": until})


def release(connection: Connection, lease: Lease) -> None:
    bound = {"upload_id": lease.upload_id, "owner_token": lease.owner, "of_epoch": lease.epoch}
    _RELEASE.run(connection, bound)


def drop(connection: Connection, prefix: str) -> None:
    connection.execute(_DROP, {"prefix": prefix, "prefix_length": len(prefix)})
