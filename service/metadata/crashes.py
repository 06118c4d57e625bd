"""What a crash of the machine makes suspect, and how a suspect is suspect no more."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import BigInteger, Connection, and_, bindparam, case, delete, insert, or_, select, update

from service.metadata.base import Begun
from service.metadata.reads import FINISHING, RECEIVING, behind, in_states, literal, load_uploads, page, up
from service.metadata.rows import dump_part
from service.metadata.schema import blocks, uploads
from service.metadata.schema import run as run_table
from service.metadata.writes import DROP_PARTS, PUT_PART, expect
from service.model import ConcatKind, Part, State, Upload, UploadId

_UNFINISHED = (State.RECEIVING, State.FINISHING)
_LIVE = tuple(state for state in State if state.live)

_SUSPECT = (
    update(uploads).where(in_states(_UNFINISHED), up.concat_kind != literal(ConcatKind.FINAL)).values(suspect=True)
)
_RUN = select(run_table)
_FORGET_RUN = delete(run_table)
_BEGIN = insert(run_table)
_SYNCED = update(run_table).where(run_table.c.id == bindparam("of_run")).values(unsynced=False)
_SUSPECTS = (
    select(uploads)
    .where(up.suspect, behind(up.updated_at, up.id))
    .order_by(up.updated_at, up.id)
    .limit(bindparam("at_most"))
)
_of_suspect = and_(up.id == bindparam("upload_id"), up.suspect, up.epoch == bindparam("of_epoch"))
_ACQUIT = update(uploads).where(_of_suspect, in_states(_LIVE)).values(suspect=False).returning(uploads)
_to_offset = bindparam("to_offset", type_=BigInteger)
_FALL_BACK = (
    update(uploads)
    .where(_of_suspect, or_(and_(RECEIVING, up.offset >= _to_offset), and_(FINISHING, up.offset > _to_offset)))
    .values(
        state=State.RECEIVING.value,
        offset=_to_offset,
        tail=case((up.offset == _to_offset, up.tail), else_=None),
        suspect=False,
        updated_at=bindparam("now"),
    )
    .returning(uploads)
)
_DROP_BLOCKS_FROM = delete(blocks).where(
    blocks.c.upload_id == bindparam("upload_id"), blocks.c.number >= bindparam("first")
)


def begin_run(connection: Connection, run: str, boot: str, *, unsynced: bool) -> Begun:
    before = connection.execute(_RUN).one_or_none()
    may_be_lost = before is not None and before.unsynced and before.boot != boot
    unsynced = unsynced or (before is not None and before.unsynced and before.boot == boot)
    connection.execute(_FORGET_RUN)
    connection.execute(_BEGIN, {"id": run, "boot": boot, "unsynced": unsynced})
    suspects = connection.execute(_SUSPECT).rowcount if may_be_lost else 0
    return Begun(unsynced, suspects)


def end_run(connection: Connection, run: str) -> None:
    connection.execute(_SYNCED, {"of_run": run})


def suspect_uploads(connection: Connection, limit: int, after: Upload | None = None) -> tuple[Upload, ...]:
    bound = page(limit, (after.updated_at, after.id) if after else None)
    return load_uploads(connection, connection.execute(_SUSPECTS, bound).all())


def acquit(connection: Connection, upload_id: UploadId, epoch: int) -> Upload:
    row = connection.execute(_ACQUIT, {"upload_id": upload_id, "of_epoch": epoch}).one_or_none()
    if row is None:
        row = expect(connection, upload_id, _LIVE, epoch, suspect=True)
    return load_uploads(connection, [row])[0]


def fall_back(
    connection: Connection, upload_id: UploadId, epoch: int, to_offset: int, ledger: Sequence[Part], now: float
) -> Upload:
    bound = {"upload_id": upload_id, "of_epoch": epoch, "to_offset": to_offset, "now": now}
    row = connection.execute(_FALL_BACK, bound).one_or_none()
    if row is None:
        expect(connection, upload_id, _UNFINISHED, epoch, suspect=True)
        raise ValueError("the offset would rise, or be the length of an upload that is receiving")
    DROP_PARTS.run(connection, {"upload_id": upload_id})
    if ledger:
        PUT_PART.run_each(connection, [dump_part(upload_id, part) for part in ledger])
    connection.execute(_DROP_BLOCKS_FROM, {"upload_id": upload_id, "first": to_offset // row.block_size})
    return load_uploads(connection, [row])[0]
