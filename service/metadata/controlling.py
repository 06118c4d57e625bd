"""What the control API asks of the database and changes in it: references, pages, jobs, revocations, requests."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, or_, select, update

from service.metadata import owning
from service.metadata.base import Conflict
from service.metadata.control import MOST_REFS, Job, Named, Refs, Repeatable, Revocation
from service.metadata.prepared import Prepared, PreparedPut
from service.metadata.reads import READY_PARTIAL, behind, in_states, literal, load_uploads, page, up
from service.metadata.rows import load_file
from service.metadata.schema import events, file_refs, files, jobs, requests, revocations, uploads
from service.metadata.writes import delete_file, put_ref
from service.model import Event, File, FileId, State, Upload, UploadId

_refs = file_refs.c
_LISTED = Prepared(
    select(_refs.ref).where(_refs.file_id == bindparam("file_id")).order_by(_refs.ref).limit(bindparam("at_most"))
)
_COUNT = Prepared(select(func.count().label("found")).where(_refs.file_id == bindparam("file_id")))
_RELEASE = delete(file_refs).where(_refs.file_id == bindparam("of_file"), _refs.ref == bindparam("of_ref"))
_CLAIM = (
    update(files)
    .where(
        files.c.id == bindparam("of_file"),
        files.c.deleted_at.is_(None),
        or_(files.c.expires_at.is_(None), files.c.expires_at > bindparam("now")),
    )
    .values(expires_at=files.c.lives_until)
    .returning(files)
)
_FILE = select(files).where(files.c.id == bindparam("file_id"))

_FILES = (
    select(files)
    .where(files.c.deleted_at.is_(None), files.c.issuer == bindparam("of_issuer"), files.c.id > bindparam("last_id"))
    .order_by(files.c.id)
    .limit(bindparam("at_most"))
)
_FILES_OF_OWNER = _FILES.where(files.c.owner == bindparam("of_owner"))
_FILES_OF_REF = (
    select(files)
    .join(file_refs, _refs.file_id == files.c.id)
    .where(
        _refs.ref == bindparam("of_ref"),
        _refs.file_id > bindparam("last_id"),
        files.c.issuer == bindparam("of_issuer"),
        files.c.deleted_at.is_(None),
    )
    # not by the file's own: a reference may be that of very many
    .order_by(_refs.file_id)
    .limit(bindparam("at_most"))
)
_UPLOADS = {
    state: select(uploads)
    .where(up.state == literal(state), up.issuer == bindparam("of_issuer"), behind(instant, up.id))
    .order_by(instant, up.id)
    .limit(bindparam("at_most"))
    for state in State
    for instant in (up.expires_at if state is State.RECEIVING else up.updated_at,)
}
_ENDED = (State.READY, State.FAILED, State.EXPIRED, State.TERMINATED)
for _state in _ENDED:
    # said as the index of all that ended has it
    _UPLOADS[_state] = _UPLOADS[_state].where(in_states(_ENDED))
_OPEN_OF_OWNER = (
    select(uploads)
    .where(
        up.issuer == bindparam("of_issuer"),
        up.owner == bindparam("of_owner"),
        up.id > bindparam("last_id"),
        or_(in_states((State.RECEIVING, State.FINISHING)), READY_PARTIAL),
    )
    .order_by(up.id)
    .limit(bindparam("at_most"))
)
_ENDED_OF_OWNER = (
    select(uploads)
    .where(
        up.issuer == bindparam("of_issuer"),
        up.owner == bindparam("of_owner"),
        up.id > bindparam("last_id"),
        up.state == literal(State.TERMINATED),
        up.updated_at >= bindparam("since"),
    )
    .order_by(up.id)
    .limit(bindparam("at_most"))
)
_DELETED_OF_OWNER = (
    select(files)
    .where(
        files.c.issuer == bindparam("of_issuer"),
        files.c.owner == bindparam("of_owner"),
        files.c.id > bindparam("last_id"),
        files.c.deleted_at >= bindparam("since"),
    )
    .order_by(files.c.id)
    .limit(bindparam("at_most"))
)

_JOB = select(jobs).where(jobs.c.id == bindparam("job_id"), jobs.c.issuer == bindparam("of_issuer"))
_OPEN_JOBS = select(jobs).where(jobs.c.done_at.is_(None)).order_by(jobs.c.asked_at).limit(bindparam("at_most"))
_ASK_AGAIN = (
    update(jobs)
    .where(jobs.c.done_at.is_(None), jobs.c.issuer == bindparam("of_issuer"), jobs.c.owner == bindparam("of_owner"))
    .values(asked_at=bindparam("now"))
    .returning(jobs)
)
_END_JOB = (
    update(jobs)
    .where(jobs.c.id == bindparam("job_id"), jobs.c.done_at.is_(None), jobs.c.asked_at == bindparam("of_asked_at"))
    .values(done_at=bindparam("now"))
    .returning(jobs)
)
_REVOCATIONS = Prepared(select(revocations).where(revocations.c.seq > bindparam("after")).order_by(revocations.c.seq))

_NEWEST_EVENT = Prepared(select(func.max(events.c.seq).label("seq")))


def _remember(statement: Any) -> Any:
    """The row is made, or takes the place of one whose time is over."""
    there, given = requests.c, statement.excluded
    return statement.on_conflict_do_update(
        index_elements=[there.issuer, there.key],
        set_={name: given[name] for name in ("digest", "created_at", "plan")},
        where=there.created_at <= bindparam("forget_before"),
    )


_REMEMBER = PreparedPut(requests, _remember)
_REQUEST = Prepared(
    select(requests).where(requests.c.issuer == bindparam("issuer"), requests.c.key == bindparam("key"))
)
_OLD_REQUESTS = select(requests.c.issuer, requests.c.key).where(requests.c.created_at <= bindparam("before"))
_OLD_JOBS = select(jobs.c.id).where(jobs.c.done_at <= bindparam("before"))
_OVER = select(revocations.c.seq).where(revocations.c.until <= bindparam("before"))
_FORGET_REQUEST = delete(requests).where(
    requests.c.issuer == bindparam("of_issuer"), requests.c.key == bindparam("of_key")
)
_FORGET_JOBS = delete(jobs).where(jobs.c.id.in_(bindparam("ids", expanding=True)))
_FORGET_REVOCATIONS = delete(revocations).where(revocations.c.seq.in_(bindparam("ids", expanding=True)))


# references


def refs(connection: Connection, file_ids: Collection[FileId]) -> dict[FileId, Refs]:
    return {file_id: _refs_of(connection, file_id) for file_id in file_ids}


def _refs_of(connection: Connection, file_id: FileId) -> Refs:
    listed = tuple(row.ref for row in _LISTED.all(connection, {"file_id": file_id, "at_most": MOST_REFS}))
    count = len(listed)
    if count == MOST_REFS:
        count = _COUNT.first(connection, {"file_id": file_id}).found
    return Refs(count, listed)


def claim_file(connection: Connection, file_id: FileId, ref: str, now: float) -> File:
    row = connection.execute(_CLAIM, {"of_file": file_id, "now": now}).one_or_none()
    if row is None:
        raise Conflict("there is no such file")
    put_ref(connection, file_id, ref)
    return load_file(row)


def release_file(connection: Connection, file_id: FileId, ref: str, now: float, outbox: Sequence[Event]) -> File:
    row = connection.execute(_FILE, {"file_id": file_id}).one_or_none()
    if row is None:
        raise Conflict("there is no such file")
    released = connection.execute(_RELEASE, {"of_file": file_id, "of_ref": ref}).rowcount
    if released and not _LISTED.first(connection, {"file_id": file_id, "at_most": 1}):
        return delete_file(connection, file_id, now, outbox)
    return load_file(row)


# pages


def files_of(
    connection: Connection, issuer: str, owner: str | None, ref: str | None, after: FileId | None, limit: int
) -> tuple[File, ...]:
    bound = {"of_issuer": issuer, "last_id": after or "", "at_most": limit}
    statement = _FILES if owner is None else _FILES_OF_OWNER
    if ref is not None:
        bound["of_ref"] = ref
        statement = _FILES_OF_REF if owner is None else _FILES_OF_REF.where(files.c.owner == bindparam("of_owner"))
    if owner is not None:
        bound["of_owner"] = owner
    return tuple(load_file(row) for row in connection.execute(statement, bound))


def uploads_in(
    connection: Connection, issuer: str, state: State, after: tuple[float, UploadId] | None, limit: int
) -> tuple[Upload, ...]:
    bound = page(limit, after) | {"of_issuer": issuer}
    return load_uploads(connection, connection.execute(_UPLOADS[state], bound).all())


def open_uploads_of(
    connection: Connection, issuer: str, owner: str, after: UploadId | None, limit: int
) -> tuple[Upload, ...]:
    bound = {"of_issuer": issuer, "of_owner": owner, "last_id": after or "", "at_most": limit}
    return load_uploads(connection, connection.execute(_OPEN_OF_OWNER, bound).all())


def ended_of(
    connection: Connection, issuer: str, owner: str, since: float, after: UploadId | None, limit: int
) -> tuple[Upload, ...]:
    bound = {"of_issuer": issuer, "of_owner": owner, "since": since, "last_id": after or "", "at_most": limit}
    return load_uploads(connection, connection.execute(_ENDED_OF_OWNER, bound).all())


def deleted_of(
    connection: Connection, issuer: str, owner: str, since: float, after: FileId | None, limit: int
) -> tuple[File, ...]:
    bound = {"of_issuer": issuer, "of_owner": owner, "since": since, "last_id": after or "", "at_most": limit}
    return tuple(load_file(row) for row in connection.execute(_DELETED_OF_OWNER, bound))


# jobs


def begin_job(connection: Connection, job: Job, revocation: Revocation) -> Job:
    revoke(connection, revocation)
    bound = {"of_issuer": job.issuer, "of_owner": job.owner, "now": job.asked_at}
    row = connection.execute(_ASK_AGAIN, bound).one_or_none()
    if row is not None:
        return _load_job(row)
    connection.execute(insert(jobs), {"id": job.id, "issuer": job.issuer, "owner": job.owner, "asked_at": job.asked_at})
    return job


def _load_job(row: Any) -> Job:
    return Job(row.id, row.issuer, row.owner, row.asked_at, row.done_at)


def job(connection: Connection, issuer: str, job_id: str) -> Job | None:
    row = connection.execute(_JOB, {"job_id": job_id, "of_issuer": issuer}).one_or_none()
    return None if row is None else _load_job(row)


def open_jobs(connection: Connection, limit: int) -> tuple[Job, ...]:
    return tuple(_load_job(row) for row in connection.execute(_OPEN_JOBS, {"at_most": limit}))


def end_job(connection: Connection, job: Job, now: float) -> None:
    bound = {"job_id": job.id, "of_asked_at": job.asked_at, "now": now}
    if (row := connection.execute(_END_JOB, bound).one_or_none()) is not None:
        owning.forget_empty(connection, row.issuer, row.owner)


# revocations


def revoke(connection: Connection, revocation: Revocation) -> None:
    values = {
        "issuer": revocation.issuer,
        "kind": revocation.named,
        "value": revocation.value,
        "issued_before": revocation.issued_before,
        "until": revocation.until,
    }
    connection.execute(insert(revocations), values)


def revoked(connection: Connection, after: int) -> tuple[tuple[int, Revocation], ...]:
    return tuple((row.seq, _load_revocation(row)) for row in _REVOCATIONS.all(connection, {"after": after}))


def _load_revocation(row: Any) -> Revocation:
    named: Named = row.kind
    return Revocation(row.issuer, named, row.value, row.issued_before, row.until)


# events


def newest_event(connection: Connection) -> int:
    return _NEWEST_EVENT.first(connection, {}).seq or 0


# requests


def remember(connection: Connection, asked: Repeatable, forget_before: float) -> Repeatable:
    bound = {
        "issuer": asked.issuer,
        "key": asked.key,
        "digest": asked.digest,
        "created_at": asked.created_at,
        "plan": json.dumps(asked.plan),
        "forget_before": forget_before,
    }
    _REMEMBER.run(connection, bound)
    row = _REQUEST.first(connection, bound)
    return Repeatable(row.issuer, row.key, row.digest, row.created_at, json.loads(row.plan))


def forget(connection: Connection, requests_before: float, jobs_before: float, now: float, limit: int) -> int:
    gone = 0
    found = connection.execute(_OLD_REQUESTS.limit(limit), {"before": requests_before}).all()
    if found:
        connection.execute(_FORGET_REQUEST, [{"of_issuer": row.issuer, "of_key": row.key} for row in found])
        gone += len(found)
    for look, forget_them, before in ((_OLD_JOBS, _FORGET_JOBS, jobs_before), (_OVER, _FORGET_REVOCATIONS, now)):
        ids = list(connection.scalars(look.limit(limit), {"before": before}))
        if ids:
            connection.execute(forget_them, {"ids": ids})
            gone += len(ids)
    return gone
