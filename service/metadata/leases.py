"""The lease columns of an upload: who may write it, until when, and whether somebody asks."""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, func, or_, select, update

from service.metadata.base import Conflict, Lease, LeaseHeld
from service.metadata.prepared import Prepared
from service.metadata.reads import LIVE, load_uploads, up, upload_row
from service.metadata.schema import uploads
from service.model import State, Upload, UploadId

_HELD = up.lease_owner.is_not(None)
#: Not LIKE: SQLite's takes `a` for `A`, and a token may hold its wildcards.
_OF_OWNERS = func.substr(up.lease_owner, 1, bindparam("prefix_length")) == bindparam("prefix")
_FREE = {"lease_owner": None, "lease_until": None, "lease_asked": False}
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
    .values(lease_owner=bindparam("owner_token"), lease_until=bindparam("until"), lease_asked=False, epoch=up.epoch + 1)
    .returning(uploads)
)
_ASK = update(uploads).where(up.id == bindparam("upload_id"), _HELD).values(lease_asked=True)
_RELEASE = Prepared(
    update(uploads)
    .where(
        up.id == bindparam("upload_id"),
        up.lease_owner == bindparam("owner_token"),
        up.epoch == bindparam("of_epoch"),
    )
    .values(_FREE)
)
_RENEW = update(uploads).where(_HELD, _OF_OWNERS).values(lease_until=bindparam("until"))
_ASKED = Prepared(select(up.id).where(_HELD, up.lease_asked.is_(True), _OF_OWNERS))
_LEASE = Prepared(select(up.lease_owner, up.lease_until, up.epoch).where(up.id == bindparam("upload_id"), _HELD))
_DROP = update(uploads).where(_HELD, _OF_OWNERS).values(_FREE)


def acquire(connection: Connection, upload_id: UploadId, owner: str, now: float, until: float) -> tuple[Lease, Upload]:
    bound = {"upload_id": upload_id, "owner_token": owner, "now": now, "until": until}
    row = _ACQUIRE.first(connection, bound)
    if row is not None:
        return Lease(upload_id, owner, row.epoch, until), load_uploads(connection, [row])[0]
    row = upload_row(connection, upload_id)
    if row is None or not State(row.state).live:
        raise Conflict("there is no such live upload")
    raise LeaseHeld(row.lease_owner, row.lease_until)


def ask(connection: Connection, upload_id: UploadId) -> None:
    connection.execute(_ASK, {"upload_id": upload_id})


def asked(connection: Connection, prefix: str) -> tuple[UploadId, ...]:
    """Sorted here: to sort by id SQLite would walk the table along its key instead of what is leased."""
    found = _ASKED.all(connection, {"prefix": prefix, "prefix_length": len(prefix)})
    return tuple(sorted(UploadId(row.id) for row in found))


def lease(connection: Connection, upload_id: UploadId) -> Lease | None:
    row = _LEASE.first(connection, {"upload_id": upload_id})
    return None if row is None else Lease(upload_id, row.lease_owner, row.epoch, row.lease_until)


def renew(connection: Connection, prefix: str, until: float) -> None:
    connection.execute(_RENEW, {"prefix": prefix, "prefix_length": len(prefix), "until": until})


def release(connection: Connection, lease: Lease) -> None:
    bound = {"upload_id": lease.upload_id, "owner_token": lease.owner, "of_epoch": lease.epoch}
    _RELEASE.run(connection, bound)


def drop(connection: Connection, prefix: str) -> None:
    connection.execute(_DROP, {"prefix": prefix, "prefix_length": len(prefix)})
