"""What is asked of the database: functions of a connection that change nothing.

Statements are built once, at import, and those that requests run are `prepared`. States in them
are literals, so that SQLite sees that a partial index fits (`schema`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    String,
    and_,
    bindparam,
    exists,
    func,
    literal_column,
    not_,
    or_,
    select,
    type_coerce,
)

from service.metadata.base import Tombstone, Totals
from service.metadata.prepared import Prepared
from service.metadata.rows import load_block, load_event, load_file, load_link, load_part, load_upload
from service.metadata.schema import blocks, events, files, final_partials, links, parts, uploads
from service.metadata.schema import identity as identity_table
from service.model import Block, ConcatKind, Event, File, FileId, LinkUse, Part, State, Upload, UploadId

up = uploads.c
#: characters of an upload's id
_ID_LENGTH: Final = 28


def literal(word: State | ConcatKind) -> ColumnElement[str]:
    return type_coerce(literal_column(f"'{word.value}'"), String)


def in_states(states: Iterable[State], column: ColumnElement[Any] = up.state) -> ColumnElement[bool]:
    return column.in_([literal(state) for state in states])


#: In the order of the conditions of the indexes in `schema`.
LIVE = in_states((State.RECEIVING, State.FINISHING, State.READY))
ENDED = in_states((State.READY, State.FAILED, State.EXPIRED, State.TERMINATED))
RECEIVING = up.state == literal(State.RECEIVING)
FINISHING = up.state == literal(State.FINISHING)
NOT_PARTIAL = up.concat_kind != literal(ConcatKind.PARTIAL)
TRUSTED = not_(up.suspect)
READY_PARTIAL = and_(up.state == literal(State.READY), up.concat_kind == literal(ConcatKind.PARTIAL))

_final = uploads.alias("final")
#: The upload is named by a final whose bytes are not joined yet (T-096).
WANTED_BY_FINAL = exists().where(
    final_partials.c.partial_id == up.id,
    _final.c.id == final_partials.c.final_id,
    in_states((State.RECEIVING, State.FINISHING), _final.c.state),
)

_UPLOADS = select(uploads).where(up.id.in_(bindparam("ids", expanding=True)))
_UPLOAD = Prepared(select(uploads).where(up.id == bindparam("upload_id")))
_UPLOADS_NAMED = Prepared(
    # a range of the key: `LIKE` would walk through all keys
    select(uploads).where(up.id >= bindparam("first"), up.id <= bindparam("last"))
)
_PARTIALS = (
    select(final_partials.c.final_id, final_partials.c.partial_id)
    .where(final_partials.c.final_id.in_(bindparam("ids", expanding=True)))
    .order_by(final_partials.c.final_id, final_partials.c.position)
)
_UPLOAD_OF_FILE = Prepared(
    select(uploads)
    .where(up.file_id == bindparam("file_id"), NOT_PARTIAL)
    .order_by(up.created_at.desc(), up.id.desc())
    .limit(1)
)
_LINK = Prepared(select(links).where(links.c.issuer == bindparam("issuer"), links.c.jti == bindparam("jti")))
_LEDGER = Prepared(select(parts).where(parts.c.upload_id == bindparam("upload_id")).order_by(parts.c.number))
_TAIL = Prepared(select(up.tail).where(up.id == bindparam("upload_id")))
_BLOCKS = Prepared(select(blocks).where(blocks.c.upload_id == bindparam("upload_id")).order_by(blocks.c.number))
_PENDING_FINALS = Prepared(
    select(up.id)
    .distinct()
    .join(final_partials, final_partials.c.final_id == up.id)
    .where(final_partials.c.partial_id == bindparam("partial_id"), RECEIVING)
    .order_by(up.id)
)
_FILE = Prepared(select(files).where(files.c.id == bindparam("file_id")))


def behind(instant: ColumnElement[Any], key: ColumnElement[Any]) -> ColumnElement[bool]:
    """Behind the row with these two, in their order; said so that an index of the instants serves."""
    last: ColumnElement[Any] = bindparam("last")
    return and_(instant >= last, or_(instant > last, key > bindparam("last_id")))


_EXPIRED = tuple(
    select(uploads)
    .where(which, up.expires_at <= bindparam("now"), not_(WANTED_BY_FINAL), behind(up.expires_at, up.id))
    .order_by(up.expires_at, up.id)
    .limit(bindparam("at_most"))
    for which in (RECEIVING, READY_PARTIAL)
)
_FINISHING = (
    select(uploads)
    .where(FINISHING, behind(up.updated_at, up.id))
    .order_by(up.updated_at, up.id)
    .limit(bindparam("at_most"))
)
_WAITING_FINALS = (
    select(uploads)
    .where(RECEIVING, up.id.in_(select(final_partials.c.final_id)), behind(up.updated_at, up.id))
    .order_by(up.updated_at, up.id)
    .limit(bindparam("at_most"))
)
_EXPIRED_FILES = (
    select(files)
    .where(
        files.c.deleted_at.is_(None),
        files.c.expires_at <= bindparam("now"),
        behind(files.c.expires_at, files.c.id),
    )
    .order_by(files.c.expires_at, files.c.id)
    .limit(bindparam("at_most"))
)
_FILE_KEYS = (
    select(files.c.id, files.c.key, files.c.deleted_at)
    .where(files.c.id > bindparam("last_id"))
    .order_by(files.c.id)
    .limit(bindparam("at_most"))
)
_UNFINISHED = (
    select(uploads)
    .where(or_(RECEIVING, FINISHING, READY_PARTIAL), up.id > bindparam("last_id"))
    .order_by(up.id)
    .limit(bindparam("at_most"))
)
#: What `writes.purge` forgets. A ready partial is the sweeper's: it has bytes to drop first.
FORGOTTEN = and_(ENDED, up.updated_at < bindparam("before"), not_(READY_PARTIAL))
_OLD_FILES = (
    select(files.c.id)
    .where(files.c.deleted_at < bindparam("before"), files.c.id > bindparam("last_id"))
    .order_by(files.c.id)
    .limit(bindparam("at_most"))
)
_OLD_UPLOADS = select(up.id).where(FORGOTTEN, up.id > bindparam("last_id")).order_by(up.id).limit(bindparam("at_most"))
_OLD_LINKS = (
    select(links.c.jti, links.c.issuer)
    .where(
        links.c.expires_at < bindparam("link_before"),
        not_(exists().where(up.jti == links.c.jti, up.issuer == links.c.issuer, not_(FORGOTTEN))),
        or_(
            links.c.jti > bindparam("last_id"),
            and_(links.c.jti == bindparam("last_id"), links.c.issuer > bindparam("last_issuer")),
        ),
    )
    .order_by(links.c.jti, links.c.issuer)
    .limit(bindparam("at_most"))
)
_PROMISED = select(func.coalesce(func.sum(up.length - up.offset), 0)).where(RECEIVING, up.length.is_not(None))
_LIVE_FILES = select(func.count(), func.coalesce(func.sum(files.c.size), 0)).where(files.c.deleted_at.is_(None))
_HELD = tuple(
    select(func.count(), func.coalesce(func.sum(up.offset), 0)).where(which)
    for which in (RECEIVING, FINISHING, READY_PARTIAL)
)
_IDENTITY = select(identity_table.c.id)
_EVENTS = select(events).where(events.c.seq > bindparam("after")).order_by(events.c.seq).limit(bindparam("at_most"))


def load_uploads(connection: Connection, rows: Sequence[Any]) -> tuple[Upload, ...]:
    """The uploads of the rows, in that order, finals with their partials."""
    finals = [row.id for row in rows if row.concat_kind == ConcatKind.FINAL]
    partials: dict[str, list[str]] = {}
    if finals:
        for final_id, partial_id in connection.execute(_PARTIALS, {"ids": finals}):
            partials.setdefault(final_id, []).append(partial_id)
    return tuple(load_upload(row, partials.get(row.id, ())) for row in rows)


def _first(connection: Connection, row: Any) -> Upload | None:
    return None if row is None else load_uploads(connection, [row])[0]


def upload(connection: Connection, upload_id: UploadId) -> Upload | None:
    return _first(connection, _UPLOAD.first(connection, {"upload_id": upload_id}))


def upload_row(connection: Connection, upload_id: UploadId) -> Any:
    """With the columns of the lease."""
    return _UPLOAD.first(connection, {"upload_id": upload_id})


def uploads_by_id(connection: Connection, upload_ids: Sequence[UploadId]) -> dict[UploadId, Upload]:
    rows = connection.execute(_UPLOADS, {"ids": list(upload_ids)}).all()
    return {found.id: found for found in load_uploads(connection, rows)}


def uploads_named(connection: Connection, names: Iterable[str]) -> dict[str, Upload]:
    # no id is longer, and in none is a character behind z
    ranges = {name: {"first": name, "last": name.ljust(_ID_LENGTH, "z")} for name in names}
    rows = {name: row for name, ends in ranges.items() for row in _UPLOADS_NAMED.all(connection, ends)}
    return dict(zip(rows, load_uploads(connection, list(rows.values())), strict=True))


def upload_of_file(connection: Connection, file_id: FileId) -> Upload | None:
    return _first(connection, _UPLOAD_OF_FILE.first(connection, {"file_id": file_id}))


def link_use(connection: Connection, issuer: str, jti: str) -> LinkUse | None:
    row = _LINK.first(connection, {"issuer": issuer, "jti": jti})
    return None if row is None else load_link(row)


def ledger(connection: Connection, upload_id: UploadId) -> tuple[Part, ...]:
    return tuple(load_part(row) for row in _LEDGER.all(connection, {"upload_id": upload_id}))


def finished_blocks(connection: Connection, upload_id: UploadId) -> tuple[Block, ...]:
    return tuple(load_block(row) for row in _BLOCKS.all(connection, {"upload_id": upload_id}))


def tail(connection: Connection, upload_id: UploadId) -> bytes | None:
    row = _TAIL.first(connection, {"upload_id": upload_id})
    return None if row is None else row.tail


def pending_finals(connection: Connection, partial_id: UploadId) -> tuple[UploadId, ...]:
    return tuple(UploadId(row.id) for row in _PENDING_FINALS.all(connection, {"partial_id": partial_id}))


def file(connection: Connection, file_id: FileId) -> File | None:
    row = _FILE.first(connection, {"file_id": file_id})
    return None if row is None else load_file(row)


def page(limit: int, last: tuple[float, str] | None) -> dict[str, Any]:
    instant, last_id = last or (-1.0, "")
    return {"at_most": limit, "last": instant, "last_id": last_id}


def expired_uploads(connection: Connection, now: float, limit: int, after: Upload | None = None) -> tuple[Upload, ...]:
    bound = page(limit, (after.expires_at, after.id) if after else None) | {"now": now}
    rows = [row for statement in _EXPIRED for row in connection.execute(statement, bound)]
    rows.sort(key=lambda row: (row.expires_at, row.id))
    return load_uploads(connection, rows[:limit])


def finishing_uploads(connection: Connection, limit: int, after: Upload | None = None) -> tuple[Upload, ...]:
    bound = page(limit, (after.updated_at, after.id) if after else None)
    return load_uploads(connection, connection.execute(_FINISHING, bound).all())


def waiting_finals(connection: Connection, limit: int, after: Upload | None = None) -> tuple[Upload, ...]:
    bound = page(limit, (after.updated_at, after.id) if after else None)
    return load_uploads(connection, connection.execute(_WAITING_FINALS, bound).all())


def expired_files(connection: Connection, now: float, limit: int, after: File | None = None) -> tuple[File, ...]:
    bound = page(limit, (after.expires_at or 0, after.id) if after else None) | {"now": now}
    return tuple(load_file(row) for row in connection.execute(_EXPIRED_FILES, bound))


def file_keys(connection: Connection, limit: int, after: FileId | None = None) -> tuple[tuple[FileId, str, bool], ...]:
    rows = connection.execute(_FILE_KEYS, {"at_most": limit, "last_id": after or ""})
    return tuple((FileId(row.id), row.key, row.deleted_at is not None) for row in rows)


def unfinished_uploads(connection: Connection, limit: int, after: UploadId | None = None) -> tuple[Upload, ...]:
    bound = {"at_most": limit, "last_id": after or ""}
    return load_uploads(connection, connection.execute(_UNFINISHED, bound).all())


def tombstones(
    connection: Connection, before: float, link_before: float, limit: int, after: Tombstone | None = None
) -> tuple[Tombstone, ...]:
    last = after or Tombstone("file", "")
    found: list[Tombstone] = []
    if last.kind == "file":
        bound: dict[str, Any] = {"before": before, "last_id": last.id, "at_most": limit}
        found += [Tombstone("file", row.id) for row in connection.execute(_OLD_FILES, bound)]
        last = Tombstone("link", "")
    if last.kind == "link" and len(found) < limit:
        bound = {
            "before": before,
            "link_before": link_before,
            "last_id": last.id,
            "last_issuer": last.issuer,
            "at_most": limit - len(found),
        }
        found += [Tombstone("link", row.jti, row.issuer) for row in connection.execute(_OLD_LINKS, bound)]
        last = Tombstone("upload", "")
    if last.kind == "upload" and len(found) < limit:
        bound = {"before": before, "last_id": last.id, "at_most": limit - len(found)}
        found += [Tombstone("upload", row.id) for row in connection.execute(_OLD_UPLOADS, bound)]
    return tuple(found)


def promised_bytes(connection: Connection) -> int:
    return int(connection.execute(_PROMISED).scalar_one())


def identity(connection: Connection) -> str:
    return str(connection.execute(_IDENTITY).scalar_one())


def totals(connection: Connection) -> Totals:
    """Stored bytes are those of files and the committed ones of uploads that are no file yet."""
    file_count, file_bytes = connection.execute(_LIVE_FILES).one()
    held = [connection.execute(statement).one() for statement in _HELD]
    receiving, finishing, _ = held
    return Totals(
        uploads_open=receiving[0] + finishing[0],
        files=file_count,
        file_bytes=int(file_bytes),
        stored_bytes=int(file_bytes) + sum(int(committed) for _, committed in held),
    )


def outbox(connection: Connection, after: int, limit: int) -> tuple[tuple[int, Event], ...]:
    return tuple(load_event(row) for row in connection.execute(_EVENTS, {"after": after, "at_most": limit}))
