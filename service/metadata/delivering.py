"""The Outbox over SQL: statements, and the object that runs them on the store's two threads."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import (
    Connection,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal_column,
    not_,
    select,
    true,
    update,
)

from service.metadata.outbox import Backlog, Due, Listed, Outlook, Standing, Verdict, Which
from service.metadata.prepared import Prepared, PreparedPut
from service.metadata.rows import load_event
from service.metadata.schema import deliveries, endpoints, events

T = TypeVar("T")

ways, ends, told = deliveries.c, endpoints.c, events.c
#: in the words of the conditions of the indexes in `schema`
_PENDING: Final = ways.failed_at.is_(None)
_ACTIVE: Final = and_(ends.configured == true(), ends.disabled_at.is_(None))
_MINE: Final = and_(ways.endpoint == bindparam("of_endpoint"), ways.seq == bindparam("of_seq"))
_MOST: Final = 2**62

_ENDPOINT = Prepared(select(endpoints).where(ends.id == bindparam("of_endpoint")))
_NEWEST = Prepared(select(func.coalesce(func.max(told.seq), 0).label("seq")))
_NEWS = Prepared(select(told.seq).where(told.seq > bindparam("after")).limit(1))
_DUE = Prepared(
    select(events, ways.file_id, ways.attempts)
    .join_from(deliveries, events, told.seq == ways.seq)
    .where(ways.endpoint == bindparam("of_endpoint"), ways.due_at.is_not(None), ways.due_at <= bindparam("now"))
    .order_by(ways.due_at, ways.seq)
    .limit(bindparam("at_most"))
)
_BEHIND = Prepared(
    select(told.seq, told.type, told.subject, told.data)
    .where(told.seq > bindparam("after"))
    .order_by(told.seq)
    .limit(bindparam("at_most"))
)
_WAITED_FOR = Prepared(
    select(ways.seq)
    .where(ways.endpoint == bindparam("of_endpoint"), ways.file_id == bindparam("of_file"), _PENDING)
    .limit(1)
)
_PUT = Prepared(insert(deliveries), columns=("endpoint", "seq", "file_id", "attempts", "due_at"))
_MOVE = Prepared(update(endpoints).where(ends.id == bindparam("of_endpoint")).values(seq=bindparam("new_seq")))
_DONE = Prepared(delete(deliveries).where(_MINE, _PENDING, ways.attempts == bindparam("of_attempts")))
_AGAIN = Prepared(
    update(deliveries)
    .where(_MINE, _PENDING, ways.attempts == bindparam("of_attempts"))
    .values(
        attempts=ways.attempts + 1,
        result=bindparam("new_result"),
        # one that is not the first of its file any more (a replay came) is due after that one
        due_at=case((ways.due_at.is_(None), None), else_=bindparam("new_due")),
    )
)
_GIVE_UP = Prepared(
    update(deliveries)
    .where(_MINE, _PENDING, ways.attempts == bindparam("of_attempts"))
    .values(attempts=ways.attempts + 1, result=bindparam("new_result"), due_at=None, failed_at=bindparam("now"))
)
_line = deliveries.alias("line")
_first = (
    select(func.min(_line.c.seq))
    .where(
        _line.c.endpoint == bindparam("of_endpoint"),
        _line.c.file_id == bindparam("of_file"),
        _line.c.failed_at.is_(None),
    )
    .scalar_subquery()
)
_of_file = and_(ways.endpoint == bindparam("of_endpoint"), ways.file_id == bindparam("of_file"), _PENDING)
_FIRST_DUE = Prepared(
    update(deliveries).where(_of_file, ways.seq == _first, ways.due_at.is_(None)).values(due_at=bindparam("now"))
)
_OTHERS_WAIT = Prepared(update(deliveries).where(_of_file, ways.seq > _first).values(due_at=None))
_DISABLE = update(endpoints).where(ends.id == bindparam("of_endpoint")).values(disabled_at=bindparam("now"))
_ENABLE = (
    update(endpoints).where(ends.id == bindparam("of_endpoint"), ends.disabled_at.is_not(None)).values(disabled_at=None)
)
_DISABLED = select(ends.id).where(ends.disabled_at.is_not(None))
_UNCONFIGURE = update(endpoints).values(configured=False)
_COUNT = select(func.count()).where(ways.endpoint == bindparam("of_endpoint"), _PENDING)
_OLDEST = (
    select(told.created_at)
    .join_from(deliveries, events, told.seq == ways.seq)
    .where(ways.endpoint == bindparam("of_endpoint"), _PENDING)
    .order_by(ways.seq)
    .limit(1)
)
_STANDINGS = select(deliveries).where(ways.seq.in_(bindparam("seqs", expanding=True))).order_by(ways.endpoint)
_SUBJECTS = select(told.seq, told.subject, told.data).where(
    told.seq.in_(bindparam("seqs", expanding=True)), told.seq <= bindparam("up_to")
)
_least = select(func.coalesce(func.min(ends.seq), literal_column(str(_MOST)))).where(_ACTIVE).scalar_subquery()
_OLD = (
    select(told.seq)
    .where(
        told.created_at < bindparam("before"),
        told.seq <= _least,
        not_(exists().where(ways.seq == told.seq, _PENDING, ends.id == ways.endpoint, _ACTIVE)),
    )
    .order_by(told.created_at)
    .limit(bindparam("at_most"))
)
_FORGET = delete(events).where(told.seq.in_(bindparam("seqs", expanding=True)))
_FORGET_WAYS = delete(deliveries).where(ways.seq.in_(bindparam("seqs", expanding=True)))


def _put_endpoint(statement: Any) -> Any:
    given = statement.excluded
    return statement.on_conflict_do_update(
        index_elements=[ends.id],
        set_={
            "configured": True,
            "url": given.url,
            "disabled_at": case((ends.url == given.url, ends.disabled_at), else_=None),
        },
    )


def _put_again(statement: Any) -> Any:
    anew = {"attempts": 0, "due_at": None, "failed_at": None, "result": None}
    return statement.on_conflict_do_update(index_elements=[ways.endpoint, ways.seq], set_=anew)


_PUT_ENDPOINT = PreparedPut(endpoints, _put_endpoint)
_PUT_AGAIN = PreparedPut(deliveries, _put_again, columns=("endpoint", "seq", "file_id", "attempts"))


def _file_of(row: Any) -> str:
    """What the order of events is kept for: the file, also of events whose subject is its upload."""
    return str(json.loads(row.data).get("file_id") or row.subject)


def register(connection: Connection, urls: Mapping[str, str]) -> None:
    newest = _NEWEST.first(connection, {}).seq
    connection.execute(_UNCONFIGURE)
    for name, url in urls.items():
        row = {"id": name, "url": url, "configured": True, "seq": newest, "disabled_at": None}
        _PUT_ENDPOINT.run(connection, row)


def outlook(connection: Connection, endpoint: str, now: float, limit: int) -> Outlook:
    row = _ENDPOINT.first(connection, {"of_endpoint": endpoint})
    if row is None or not row.configured or row.disabled_at is not None:
        return Outlook(active=False)
    news = _NEWS.first(connection, {"after": row.seq}) is not None
    rows = _DUE.all(connection, {"of_endpoint": endpoint, "now": now, "at_most": limit})
    due = tuple(Due(each.seq, each.file_id, each.attempts, load_event(each)[1]) for each in rows)
    return Outlook(True, news, due)


def take_in(connection: Connection, endpoint: str, wants: Callable[[str], bool], now: float, limit: int) -> int:
    row = _ENDPOINT.first(connection, {"of_endpoint": endpoint})
    if row is None or not row.configured or row.disabled_at is not None:
        return 0
    behind = _BEHIND.all(connection, {"after": row.seq, "at_most": limit})
    if not behind:
        return 0
    waited_for: dict[str, bool] = {}
    taken = []
    for event in behind:
        if not wants(event.type):
            continue
        file_id = _file_of(event)
        if file_id not in waited_for:
            bound = {"of_endpoint": endpoint, "of_file": file_id}
            waited_for[file_id] = _WAITED_FOR.first(connection, bound) is not None
        due_at = None if waited_for[file_id] else now
        taken.append({"endpoint": endpoint, "seq": event.seq, "file_id": file_id, "attempts": 0, "due_at": due_at})
        waited_for[file_id] = True
    _PUT.run_each(connection, taken)
    _MOVE.run(connection, {"of_endpoint": endpoint, "new_seq": behind[-1].seq})
    return len(behind)


def settle(connection: Connection, endpoint: str, due: Due, verdict: Verdict, now: float) -> bool:
    bound = {"of_endpoint": endpoint, "of_seq": due.seq, "of_attempts": due.attempts}
    if verdict.again_at is not None:
        again = {"new_result": verdict.result, "new_due": verdict.again_at}
        return _AGAIN.run(connection, bound | again) == 1
    if verdict.delivered:
        settled = _DONE.run(connection, bound)
    else:
        settled = _GIVE_UP.run(connection, bound | {"new_result": verdict.result, "now": now})
    if settled:
        _FIRST_DUE.run(connection, {"of_endpoint": endpoint, "of_file": due.file_id, "now": now})
    return settled == 1


def disable(connection: Connection, endpoint: str, now: float) -> None:
    connection.execute(_DISABLE, {"of_endpoint": endpoint, "now": now})


def enable(connection: Connection, endpoint: str) -> bool:
    return connection.execute(_ENABLE, {"of_endpoint": endpoint}).rowcount == 1


def disabled(connection: Connection) -> frozenset[str]:
    return frozenset(connection.scalars(_DISABLED))


def backlog(connection: Connection, endpoint: str) -> Backlog:
    bound = {"of_endpoint": endpoint}
    oldest = connection.execute(_OLDEST, bound).scalar_one_or_none()
    return Backlog(int(connection.execute(_COUNT, bound).scalar_one()), oldest)


def listed(connection: Connection, which: Which, after: int, limit: int) -> tuple[Listed, ...]:
    conditions = [told.seq > after]
    if which.id is not None:
        conditions.append(told.id == which.id)
    if which.since is not None:
        conditions.append(told.created_at >= which.since)
    if which.until is not None:
        conditions.append(told.created_at < which.until)
    found = connection.execute(select(events).where(*conditions).order_by(told.seq).limit(limit)).all()
    missing: dict[int, list[Standing]] = {}
    for row in connection.execute(_STANDINGS, {"seqs": [row.seq for row in found]}):
        standing = Standing(row.endpoint, row.failed_at is not None, row.attempts, row.due_at, row.result)
        missing.setdefault(row.seq, []).append(standing)
    return tuple(Listed(*load_event(row), tuple(missing.get(row.seq, ()))) for row in found)


def replay(connection: Connection, endpoint: str, seqs: Sequence[int], now: float) -> int:
    row = _ENDPOINT.first(connection, {"of_endpoint": endpoint})
    if row is None:
        return 0
    # what lies behind its place is on its way anyhow
    found = connection.execute(_SUBJECTS, {"seqs": list(seqs), "up_to": row.seq}).all()
    again = [{"endpoint": endpoint, "seq": each.seq, "file_id": _file_of(each), "attempts": 0} for each in found]
    _PUT_AGAIN.run_each(connection, again)
    for file_id in {each["file_id"] for each in again}:
        bound = {"of_endpoint": endpoint, "of_file": file_id}
        _OTHERS_WAIT.run(connection, bound)
        _FIRST_DUE.run(connection, bound | {"now": now})
    return len(again)


def forget(connection: Connection, before: float, limit: int) -> int:
    old = list(connection.scalars(_OLD, {"before": before, "at_most": limit}))
    if old:
        connection.execute(_FORGET, {"seqs": old})
        connection.execute(_FORGET_WAYS, {"seqs": old})
    return len(old)


class _Write(Protocol):
    def __call__(self, work: Callable[[Connection], T], *, durable: bool = False) -> Awaitable[T]: ...


class _Read(Protocol):
    def __call__(self, work: Callable[[Connection], T]) -> Awaitable[T]: ...


class SqlOutbox:
    """The methods are those of Outbox.

    Args:
        write, read: run work in a transaction of the store.
    """

    def __init__(self, write: _Write, read: _Read) -> None:
        self._write = write
        self._read = read

    async def register(self, endpoints: Mapping[str, str]) -> None:
        await self._write(partial(register, urls=endpoints))

    async def outlook(self, endpoint: str, *, now: float, limit: int) -> Outlook:
        return await self._read(partial(outlook, endpoint=endpoint, now=now, limit=limit))

    async def take_in(self, endpoint: str, wants: Callable[[str], bool], *, now: float, limit: int) -> int:
        return await self._write(partial(take_in, endpoint=endpoint, wants=wants, now=now, limit=limit), durable=True)

    async def settle(self, endpoint: str, due: Due, verdict: Verdict, *, now: float) -> bool:
        return await self._write(partial(settle, endpoint=endpoint, due=due, verdict=verdict, now=now))

    async def disable(self, endpoint: str, *, now: float) -> None:
        await self._write(partial(disable, endpoint=endpoint, now=now))

    async def enable(self, endpoint: str) -> bool:
        return await self._write(partial(enable, endpoint=endpoint))

    async def disabled(self) -> frozenset[str]:
        return await self._read(disabled)

    async def backlog(self, endpoint: str) -> Backlog:
        return await self._read(partial(backlog, endpoint=endpoint))

    async def listed(self, which: Which, *, after: int = 0, limit: int) -> tuple[Listed, ...]:
        return await self._read(partial(listed, which=which, after=after, limit=limit))

    async def replay(self, endpoint: str, seqs: Sequence[int], *, now: float) -> int:
        return await self._write(partial(replay, endpoint=endpoint, seqs=seqs, now=now))

    async def forget(self, *, before: float, limit: int) -> int:
        return await self._write(partial(forget, before=before, limit=limit))
