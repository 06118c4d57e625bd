"""What changes the database: functions of a connection inside a transaction.

Each is one compare-and-set: an UPDATE that says in its WHERE what it expects and hands back the
row it made. Only when no row fits is the old one read, to tell the caller why. A function that
raises leaves its traces to whoever rolls back (`worker`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

from sqlalchemy import (
    BigInteger,
    Connection,
    LargeBinary,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    not_,
    or_,
    select,
    update,
)

from service.metadata import owning
from service.metadata.base import Advance, Conflict, Ending, FileIdTaken
from service.metadata.control import MOST_REFS
from service.metadata.leases import FREE
from service.metadata.prepared import Prepared, PreparedPut
from service.metadata.reads import (
    FINISHING,
    FORGOTTEN,
    LIVE,
    NOT_PARTIAL,
    RECEIVING,
    TRUSTED,
    WANTED_BY_FINAL,
    in_states,
    link_use,
    load_uploads,
    up,
    upload_row,
)
from service.metadata.rows import (
    dump_block,
    dump_event,
    dump_file,
    dump_link,
    dump_link_again,
    dump_part,
    dump_upload,
    load_file,
    load_upload,
)
from service.metadata.schema import blocks, events, file_refs, files, final_partials, links, parts, uploads
from service.model import UNLIMITED, ConcatKind, Event, File, FileId, LinkUse, Quota, State, Upload, UploadId

_TAKEN = Prepared(
    select(
        or_(
            exists().where(up.file_id == bindparam("file_id"), LIVE, NOT_PARTIAL),
            exists().where(files.c.id == bindparam("file_id")),
        ).label("taken")
    )
)
_USE_FIRST = PreparedPut(links)
_USE_AGAIN = Prepared(
    update(links)
    .where(
        links.c.issuer == bindparam("of_issuer"),
        links.c.jti == bindparam("of_jti"),
        links.c.version == bindparam("read_version"),
    )
    .values(
        expires_at=bindparam("new_expires_at"),
        uploads=bindparam("new_uploads"),
        partials=bindparam("new_partials"),
        partial_bytes=bindparam("new_partial_bytes"),
        version=links.c.version + 1,
    )
)
_PUT_UPLOAD = Prepared(insert(uploads), columns=uploads.c.keys())
_PUT_EVENT = Prepared(insert(events), columns=("id", "type", "subject", "created_at", "data", "issuer"))
_PUT_FILE = Prepared(insert(files), columns=files.c.keys())
_PUT_BLOCK = Prepared(insert(blocks), columns=blocks.c.keys())


def _put_part(statement: Any) -> Any:
    replaced = ("start", "end", "key", "etag", "digest", "epoch")
    return statement.on_conflict_do_update(
        index_elements=[parts.c.upload_id, parts.c.number],
        set_={name: statement.excluded[name] for name in replaced},
    )


PUT_PART = PreparedPut(parts, _put_part)

_to_offset = bindparam("to_offset", type_=BigInteger)
_new_length = bindparam("new_length", type_=BigInteger)
_new_tail = bindparam("new_tail", type_=LargeBinary)
_length = func.coalesce(_new_length, up.length)
_advance = (
    update(uploads)
    .where(
        up.id == bindparam("upload_id"),
        RECEIVING,
        TRUSTED,
        up.offset == bindparam("from_offset"),
        up.epoch == bindparam("of_epoch"),
        or_(up.length.is_(None), _new_length.is_(None), up.length == _new_length),
        or_(_length.is_(None), _to_offset <= _length),
    )
    .values(
        offset=_to_offset,
        tail=case((up.offset == _to_offset, func.coalesce(_new_tail, up.tail)), else_=_new_tail),
        length=_length,
        state=bindparam("new_state"),
        expires_at=bindparam("new_expires_at"),
        updated_at=bindparam("now"),
    )
    .returning(uploads)
)
_GO_ON = Prepared(
    update(uploads)
    .where(
        up.id == bindparam("upload_id"),
        RECEIVING,
        TRUSTED,
        up.lease_owner.is_(None),
        up.offset == bindparam("from_offset"),
        up.epoch == bindparam("of_epoch"),
        or_(up.length.is_(None), _to_offset < up.length),
    )
    .values(offset=_to_offset, tail=_new_tail, expires_at=bindparam("new_expires_at"), updated_at=bindparam("now"))
)
_ADVANCE = Prepared(_advance)
_ADVANCE_LAST = Prepared(_advance.values(FREE))
_PUBLISH = Prepared(
    update(uploads)
    .where(up.id == bindparam("upload_id"), FINISHING, TRUSTED, up.epoch == bindparam("of_epoch"))
    .values(state=State.READY.value, updated_at=bindparam("now"), **FREE)
    .returning(uploads)
)
_END = (
    update(uploads)
    .where(up.id == bindparam("upload_id"))
    .values(
        state=bindparam("new_state"),
        updated_at=bindparam("now"),
        problem=bindparam("new_problem"),
        problem_detail=bindparam("new_detail"),
        epoch=up.epoch + 1,
        suspect=False,
        tail=None,
        **FREE,
    )
    .returning(uploads)
)
_DROP_PARTS_ABOVE = Prepared(
    delete(parts).where(parts.c.upload_id == bindparam("upload_id"), parts.c.number > bindparam("last_number"))
)
DROP_PARTS = Prepared(delete(parts).where(parts.c.upload_id == bindparam("upload_id")))
_DROP_BLOCKS = Prepared(delete(blocks).where(blocks.c.upload_id == bindparam("upload_id")))
_PUT_REF = PreparedPut(file_refs)
_REFS = Prepared(
    select(file_refs.c.ref)
    .where(file_refs.c.file_id == bindparam("file_id"))
    .order_by(file_refs.c.ref)
    .limit(bindparam("at_most"))
)
_DROP_REFS = Prepared(delete(file_refs).where(file_refs.c.file_id == bindparam("file_id")))
_DELETE_FILE = (
    update(files)
    .where(files.c.id == bindparam("file_id"), files.c.deleted_at.is_(None))
    .values(deleted_at=bindparam("now"))
    .returning(files)
)
_FILE = select(files).where(files.c.id == bindparam("file_id"))

_ended_uploads = select(up.id).where(FORGOTTEN).order_by(up.updated_at).limit(bindparam("at_most"))
_deleted_files = select(files.c.id).where(files.c.deleted_at < bindparam("before")).limit(bindparam("at_most"))
_spent_links = (
    select(links.c.issuer, links.c.jti)
    .where(
        links.c.expires_at < bindparam("before"),
        not_(exists().where(up.jti == links.c.jti, up.issuer == links.c.issuer)),
    )
    .limit(bindparam("at_most"))
)
_FORGET_PARTIALS = delete(final_partials).where(final_partials.c.final_id.in_(bindparam("ids", expanding=True)))
_FORGET_UPLOADS = delete(uploads).where(up.id.in_(bindparam("ids", expanding=True)))
_FORGET_FILES = delete(files).where(files.c.id.in_(bindparam("ids", expanding=True)))
_FORGET_LINK = delete(links).where(links.c.issuer == bindparam("of_issuer"), links.c.jti == bindparam("of_jti"))


def _tell(connection: Connection, outbox: Sequence[Event]) -> None:
    if outbox:
        _PUT_EVENT.run_each(connection, [dump_event(event) for event in outbox])


def _tell_of_file(connection: Connection, file_id: str, outbox: Sequence[Event]) -> None:
    """The references that an event tells of are those of this moment."""
    if outbox:
        refs = [row.ref for row in _REFS.all(connection, {"file_id": file_id, "at_most": MOST_REFS})]
        _tell(connection, [replace(event, data={**event.data, "refs": refs}) for event in outbox])


def put_ref(connection: Connection, file_id: FileId, ref: str) -> None:
    """The file has the reference, once."""
    _PUT_REF.run(connection, {"file_id": file_id, "ref": ref})


def create_upload(
    connection: Connection, upload: Upload, use: LinkUse, outbox: Sequence[Event], quota: Quota = UNLIMITED
) -> None:
    _use_link(connection, use)
    # Partials share the file id of the link with the final that joins them (T-05F).
    counts = upload.concat_kind is not ConcatKind.PARTIAL
    if counts and _TAKEN.first(connection, {"file_id": upload.file_id}).taken:
        raise FileIdTaken("the file id belongs to another upload or file")
    owning.reserve(connection, upload, quota)
    _PUT_UPLOAD.run(connection, dump_upload(upload))
    if upload.partials:
        rows = [
            {"final_id": upload.id, "position": position, "partial_id": partial_id}
            for position, partial_id in enumerate(upload.partials)
        ]
        connection.execute(insert(final_partials), rows)
    _tell(connection, outbox)


def create_ready(
    connection: Connection, upload: Upload, use: LinkUse, file: File, outbox: Sequence[Event], quota: Quota
) -> None:
    create_upload(connection, upload, use, outbox, quota)
    _put_file(connection, file)
    owning.began_as_file(connection, upload, file)


def _put_file(connection: Connection, file: File) -> None:
    _PUT_FILE.run(connection, dump_file(file))
    if file.ref is not None:
        put_ref(connection, file.id, file.ref)


def _use_link(connection: Connection, use: LinkUse) -> None:
    if use.version == 0:
        done = _USE_FIRST.run(connection, dump_link(use))
    else:
        done = _USE_AGAIN.run(connection, dump_link_again(use))
    if done != 1:
        raise Conflict("the link was used meanwhile")


def advance(connection: Connection, upload_id: UploadId, epoch: int, start: int, step: Advance, now: float) -> Upload:
    if step.to_offset < start:
        raise ValueError("the offset would fall")
    if step.state not in (State.RECEIVING, State.FINISHING):
        raise ValueError("a step leads to receiving or finishing")
    bound = {
        "upload_id": upload_id,
        "of_epoch": epoch,
        "from_offset": start,
        "to_offset": step.to_offset,
        "new_length": step.length,
        "new_tail": step.tail,
        "new_state": step.state.value,
        "new_expires_at": step.expires_at,
        "now": now,
    }
    row = (_ADVANCE_LAST if step.releases else _ADVANCE).first(connection, bound)
    if row is None:
        _refuse_advance(connection, upload_id, epoch, start, step)
    _put_content(connection, upload_id, step)
    return load_uploads(connection, [row])[0]


def _put_content(connection: Connection, upload_id: UploadId, step: Advance) -> None:
    if step.parts:
        PUT_PART.run_each(connection, [dump_part(upload_id, part) for part in step.parts])
        _DROP_PARTS_ABOVE.run(connection, {"upload_id": upload_id, "last_number": step.parts[-1].number})
    if step.blocks:
        _PUT_BLOCK.run_each(connection, [dump_block(upload_id, block) for block in step.blocks])


def go_on(connection: Connection, upload: Upload, step: Advance, now: float) -> Upload:
    if step.to_offset <= upload.offset:
        raise ValueError("the offset would stay, or fall")
    bound = {
        "upload_id": upload.id,
        "of_epoch": upload.epoch,
        "from_offset": upload.offset,
        "to_offset": step.to_offset,
        "new_tail": step.tail,
        "new_expires_at": step.expires_at,
        "now": now,
    }
    if not _GO_ON.run(connection, bound):
        raise Conflict("somebody was at the upload meanwhile")
    _put_content(connection, upload.id, step)
    return upload.with_(offset=step.to_offset, expires_at=step.expires_at, updated_at=now)


def _refuse_advance(connection: Connection, upload_id: UploadId, epoch: int, start: int, step: Advance) -> NoReturn:
    row = expect(connection, upload_id, (State.RECEIVING,), epoch, suspect=False)
    if row.offset != start:
        raise Conflict("the upload is at another offset")
    if row.length is not None and step.length not in (None, row.length):
        raise Conflict("the length is known, and another")
    raise ValueError("the offset would pass the length")


def expect(
    connection: Connection,
    upload_id: UploadId,
    states: Sequence[State],
    epoch: int | None,
    *,
    suspect: bool | None = None,
) -> Any:
    """The upload as it is; says in a Conflict in which way it is not as expected."""
    row = upload_row(connection, upload_id)
    if row is None:
        raise Conflict("there is no such upload")
    if row.state not in states:
        raise Conflict(f"the upload is {row.state}")
    if epoch is not None and row.epoch != epoch:
        raise Conflict("another lease was given meanwhile")
    if suspect is not None and row.suspect != suspect:
        raise Conflict("the upload is not suspect" if suspect else "the upload is to be checked first")
    return row


def publish(
    connection: Connection, upload_id: UploadId, epoch: int, file: File | None, outbox: Sequence[Event], now: float
) -> Upload:
    row = _PUBLISH.first(connection, {"upload_id": upload_id, "of_epoch": epoch, "now": now})
    if row is None:
        row = expect(connection, upload_id, (State.FINISHING, State.READY), None, suspect=False)
        if row.state != State.READY:
            raise Conflict("another lease was given meanwhile")
        return load_uploads(connection, [row])[0]
    if file is not None:
        _put_file(connection, file)
        _drop_content(connection, upload_id)
    owning.published(connection, row, file)
    _tell(connection, outbox)
    return load_uploads(connection, [row])[0]


def _drop_content(connection: Connection, upload_id: UploadId) -> None:
    DROP_PARTS.run(connection, {"upload_id": upload_id})
    _DROP_BLOCKS.run(connection, {"upload_id": upload_id})


def end_upload(
    connection: Connection,
    upload_id: UploadId,
    epoch: int | None,
    ending: Ending,
    expected: Sequence[State],
    unexpired_before: float | None,
) -> Upload:
    statement = _END.where(in_states(expected) if expected else LIVE)
    if epoch is not None:
        statement = statement.where(up.epoch == epoch)
    if unexpired_before is not None:
        # What the sweeper saw when it listed the upload must still hold: expired, nobody at work
        # on it, and no final made meanwhile that needs it (T-096).
        unheld = or_(up.lease_owner.is_(None), up.lease_until <= unexpired_before)
        statement = statement.where(and_(up.expires_at <= unexpired_before, unheld, not_(WANTED_BY_FINAL)))
    bound = {
        "upload_id": upload_id,
        "new_state": ending.state.value,
        "new_problem": ending.problem,
        "new_detail": ending.detail,
        "now": ending.at,
    }
    before = upload_row(connection, upload_id)
    row = connection.execute(statement, bound).one_or_none()
    if row is None:
        expect(connection, upload_id, expected or tuple(state for state in State if state.live), epoch)
        raise Conflict("the upload is not expired, or is in use")
    _drop_content(connection, upload_id)
    owning.ended(connection, before)
    if ending.quarantined is not None:
        _put_file(connection, ending.quarantined)
        owning.quarantined(connection, ending.quarantined)
    if ending.free_link:
        _free_link(connection, load_upload(row))
    _tell(connection, ending.events)
    return load_uploads(connection, [row])[0]


def _free_link(connection: Connection, ended: Upload) -> None:
    """The use that the upload was counts no longer (T-05E)."""
    use = link_use(connection, ended.terms.issuer, ended.terms.jti)
    if use is None:
        return
    partials, partial_bytes = use.partials, use.partial_bytes
    if ended.concat_kind is ConcatKind.PARTIAL:
        partials = max(0, partials - 1)
        partial_bytes = max(0, partial_bytes - (ended.length or 0))
    left = tuple(upload_id for upload_id in use.uploads if upload_id != ended.id)
    freed = LinkUse(use.issuer, use.jti, use.expires_at, left, partials, partial_bytes, use.version)
    if freed != use:
        _use_link(connection, freed)


def delete_file(
    connection: Connection, file_id: FileId, now: float, outbox: Sequence[Event], expired_before: float | None = None
) -> File:
    statement = _DELETE_FILE
    if expired_before is not None:
        # what the sweeper saw when it listed the file must still hold: nobody has claimed it since
        statement = statement.where(files.c.expires_at <= expired_before)
    row = connection.execute(statement, {"file_id": file_id, "now": now}).one_or_none()
    if row is not None:
        _tell_of_file(connection, file_id, outbox)
        _DROP_REFS.run(connection, {"file_id": file_id})
        owning.deleted(connection, row)
        return load_file(row)
    row = connection.execute(_FILE, {"file_id": file_id}).one_or_none()
    if row is None:
        raise Conflict("there is no such file")
    if row.deleted_at is None:
        raise Conflict("the file has been claimed")
    return load_file(row)


def tell_of_file(connection: Connection, file_id: FileId, outbox: Sequence[Event]) -> None:
    row = connection.execute(_FILE, {"file_id": file_id}).one_or_none()
    if row is None or row.deleted_at is not None:
        raise Conflict("there is no such file")
    _tell_of_file(connection, file_id, outbox)


def purge(connection: Connection, before: float, link_before: float, limit: int) -> int:
    """Uploads first: a link goes once nothing that it made is remembered."""
    ended = list(connection.scalars(_ended_uploads, {"before": before, "at_most": limit}))
    if ended:
        connection.execute(_FORGET_PARTIALS, {"ids": ended})
        connection.execute(_FORGET_UPLOADS, {"ids": ended})
    deleted = list(connection.scalars(_deleted_files, {"before": before, "at_most": limit - len(ended)}))
    if deleted:
        connection.execute(_FORGET_FILES, {"ids": deleted})
    left = limit - len(ended) - len(deleted)
    spent = connection.execute(_spent_links, {"before": link_before, "at_most": left}).all()
    if spent:
        connection.execute(_FORGET_LINK, [{"of_issuer": row.issuer, "of_jti": row.jti} for row in spent])
    return len(ended) + len(deleted) + len(spent)
