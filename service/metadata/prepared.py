"""Core statements for the hot path: compiled once, then run on the driver's own cursor.

SQLAlchemy writes the SQL for either database; what is left out is what it does around each
execution, which costs several times what SQLite needs to look up a row by its key. In return the
rows come as the driver has them (no result types: see `rows`), and errors are the driver's own
(`worker` maps both kinds).
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from sqlalchemy import Connection, Dialect, Table


class _Compiled:
    """A statement for one dialect: the text, and which value goes where."""

    def __init__(self, statement: Any, dialect: Dialect, columns: Sequence[str] | None) -> None:
        compiled: Any = statement.compile(dialect=dialect, column_keys=list(columns) if columns else None)
        self.text: str = compiled.string
        self._names: tuple[str, ...] | None = tuple(compiled.positiontup) if compiled.positional else None
        #: values that are part of the statement, such as the 1 of `epoch + 1`
        self._fixed = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}

    def bind(self, values: Mapping[str, Any]) -> Any:
        """A KeyError tells which value is missing."""
        given = {**self._fixed, **values} if self._fixed else values
        return given if self._names is None else [given[name] for name in self._names]


class Prepared:
    """A statement with named values, run over a connection that is inside a transaction."""

    def __init__(self, statement: Any, *, columns: Sequence[str] | None = None) -> None:
        """`columns`: of an INSERT, those that get a value."""
        self._statement = statement
        self._columns = columns
        self._compiled: dict[str, _Compiled] = {}
        exported = getattr(statement, "exported_columns", None)
        self._row: Any = namedtuple("Row", [column.name for column in exported]) if exported else None  # noqa: PYI024

    def _on(self, connection: Connection) -> _Compiled:
        dialect = connection.dialect
        compiled = self._compiled.get(dialect.name)
        if compiled is None:
            compiled = self._compiled[dialect.name] = _Compiled(self._statement, dialect, self._columns)
        return compiled

    def _cursor(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        compiled = self._on(connection)
        cursor = connection.connection.cursor()
        cursor.execute(compiled.text, compiled.bind(values))
        return cursor

    def first(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        """The first row, with a name for each column, or None."""
        cursor = self._cursor(connection, values)
        row = cursor.fetchone()
        cursor.close()
        return None if row is None else self._row._make(row)

    def all(self, connection: Connection, values: Mapping[str, Any]) -> list[Any]:
        cursor = self._cursor(connection, values)
        rows = cursor.fetchall()
        cursor.close()
        return [self._row._make(row) for row in rows]

    def run(self, connection: Connection, values: Mapping[str, Any]) -> int:
        """How many rows it touched."""
        cursor = self._cursor(connection, values)
        touched: int = cursor.rowcount
        cursor.close()
        return touched

    def run_each(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        compiled = self._on(connection)
        cursor = connection.connection.cursor()
        cursor.executemany(compiled.text, [compiled.bind(row) for row in rows])
        cursor.close()


class PreparedPut:
    """An INSERT that heeds the row that is there, which the two databases spell alike and SQLAlchemy
    has once for each. Only that of the database in use is made: the other's module is not needed then.
    """

    def __init__(
        self, table: Table, on_conflict: Callable[[Any], Any] | None = None, *, columns: Sequence[str] | None = None
    ) -> None:
        """An INSERT that gives way, unless told otherwise.

        Args:
            on_conflict: of the INSERT of a dialect, the statement.
            columns: those that get a value; all unless told otherwise.
        """
        self._table = table
        self._on_conflict = on_conflict or _give_way
        self._columns = columns or table.c.keys()
        #: by the name of the dialect
        self._prepared: dict[str, Prepared] = {}

    def _for(self, connection: Connection) -> Prepared:
        name = connection.dialect.name
        prepared = self._prepared.get(name)
        if prepared is None:
            prepared = self._prepared[name] = Prepared(self.statement(name), columns=self._columns)
        return prepared

    def statement(self, dialect: str) -> Any:
        """As the dialect of that name has it."""
        return self._on_conflict(import_module(f"sqlalchemy.dialects.{dialect}").insert(self._table))

    def run(self, connection: Connection, values: Mapping[str, Any]) -> int:
        return self._for(connection).run(connection, values)

    def run_each(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        self._for(connection).run_each(connection, rows)


def _give_way(statement: Any) -> Any:
    return statement.on_conflict_do_nothing()
