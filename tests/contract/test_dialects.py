"""What is written once for two databases, though only one of them is in use."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_mock_engine
from sqlalchemy.dialects import postgresql, sqlite

from service.metadata import controlling, delivering, duties, owning, schema, writes
from service.metadata.prepared import PreparedPut

DIALECTS = {"sqlite": sqlite.dialect(), "postgresql": postgresql.dialect()}
PUTS = {
    f"{module.__name__}.{name}": value
    for module in (controlling, delivering, duties, owning, writes)
    for name, value in vars(module).items()
    if isinstance(value, PreparedPut)
}


def made_in(url: str) -> list[str]:
    """What makes the schema there."""
    statements: list[str] = []

    def note(statement: Any, *_: Any, **__: Any) -> None:
        statements.append(" ".join(str(statement.compile(dialect=engine.dialect)).split()))

    engine = create_mock_engine(url, note)
    schema.metadata.create_all(engine, checkfirst=False)
    return statements


def partial_indexes(url: str) -> set[str]:
    return {each.split()[-1 + each.split().index("ON")] for each in made_in(url) if " WHERE " in each}


def test_an_index_is_partial_in_either_database() -> None:
    """Each index that walks only some rows does so whichever makes it, in the words of its queries."""
    assert partial_indexes("sqlite://") == partial_indexes("postgresql://")
    assert "uploads_receiving" in partial_indexes("sqlite://")
    assert "CREATE INDEX uploads_suspect ON uploads (updated_at) WHERE suspect" in made_in("postgresql://")
    assert "CREATE INDEX uploads_suspect ON uploads (updated_at) WHERE suspect = 1" in made_in("sqlite://")


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("put", PUTS)
def test_a_put_heeds_what_is_there_in_either_database(put: str, dialect: str) -> None:
    """Each statement that may meet a row that is there says what becomes of it, in the words of either database."""
    assert " ON CONFLICT " in str(PUTS[put].statement(dialect).compile(dialect=DIALECTS[dialect]))
