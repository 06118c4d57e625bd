"""What the control API keeps: references, owners' counters, jobs, revocations, answers to repeated requests."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_PENDING = "state IN ('receiving', 'finishing')"
_COUNTED = f"({_PENDING} OR (state = 'ready' AND concat_kind = 'partial'))"


def upgrade() -> None:
    op.create_table(
        "file_refs",
        sa.Column("file_id", sa.Text(), primary_key=True),
        sa.Column("ref", sa.Text(), primary_key=True),
    )
    op.create_index("file_refs_ref", "file_refs", ["ref", "file_id"])
    op.create_table(
        "owners",
        sa.Column("issuer", sa.Text(), primary_key=True),
        sa.Column("owner", sa.Text(), primary_key=True),
        sa.Column("files", sa.BigInteger(), nullable=False),
        sa.Column("file_bytes", sa.BigInteger(), nullable=False),
        sa.Column("pending", sa.BigInteger(), nullable=False),
        sa.Column("reserved", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("asked_at", sa.Double(), nullable=False),
        sa.Column("done_at", sa.Double()),
    )
    _partial_index("jobs_open", "jobs", ["asked_at"], "done_at IS NULL")
    _partial_index("jobs_done", "jobs", ["done_at"], "done_at IS NOT NULL")
    op.create_table(
        "revocations",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("issued_before", sa.Double(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("revocations_until", "revocations", ["until"])
    op.create_table(
        "requests",
        sa.Column("issuer", sa.Text(), primary_key=True),
        sa.Column("key", sa.Text(), primary_key=True),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("plan", sa.Text(), nullable=False),
    )
    op.create_index("requests_created", "requests", ["created_at"])
    op.add_column("uploads", sa.Column("reserved", sa.BigInteger(), server_default="0", nullable=False))
    _partial_index("uploads_owner", "uploads", ["issuer", "owner", "id"], "owner IS NOT NULL")
    op.add_column("files", sa.Column("lives_until", sa.Double()))
    _partial_index("files_owner", "files", ["issuer", "owner", "id"], "owner IS NOT NULL")
    op.add_column("events", sa.Column("issuer", sa.Text(), server_default="", nullable=False))
    _fill()


def _fill() -> None:
    """What the new tables and columns would say if they had been there from the first."""
    op.execute(
        "INSERT INTO file_refs (file_id, ref) SELECT id, ref FROM files WHERE ref IS NOT NULL AND deleted_at IS NULL"
    )
    op.execute(f'UPDATE uploads SET reserved = COALESCE(length, "offset") WHERE owner IS NOT NULL AND {_COUNTED}')
    counts = f"SUM(CASE WHEN {_PENDING} THEN 1 ELSE 0 END)"
    op.execute(
        "INSERT INTO owners (issuer, owner, files, file_bytes, pending, reserved) "
        "SELECT issuer, owner, SUM(files), SUM(file_bytes), SUM(pending), SUM(reserved) FROM ("
        "SELECT issuer, owner, COUNT(*) AS files, SUM(size) AS file_bytes, 0 AS pending, 0 AS reserved FROM files "
        "WHERE owner IS NOT NULL AND deleted_at IS NULL GROUP BY issuer, owner UNION ALL "
        f"SELECT issuer, owner, 0, 0, {counts}, SUM(reserved) FROM uploads "
        f"WHERE owner IS NOT NULL AND {_COUNTED} GROUP BY issuer, owner) AS counted GROUP BY issuer, owner"
    )
    for table in ("uploads", "files"):
        op.execute(
            f"UPDATE events SET issuer = (SELECT issuer FROM {table} WHERE id = subject) "
            f"WHERE subject IN (SELECT id FROM {table})"
        )
    files, uploads = sa.table("files", *map(sa.column, _FILE)), sa.table("uploads", *map(sa.column, ("id", "terms")))
    found = sa.select(files.c.id, files.c.created_at, files.c.expires_at, uploads.c.terms).join_from(
        files, uploads, uploads.c.id == files.c.upload_id, isouter=True
    )
    connection = op.get_bind()
    for row in connection.execute(found.where(files.c.expires_at.is_not(None))).all():
        connection.execute(sa.update(files).where(files.c.id == row.id).values(lives_until=_lives_until(row)))


_FILE = ("id", "upload_id", "created_at", "expires_at", "lives_until")


def _lives_until(row: Any) -> Any:
    """When the file ends although it is claimed; as it stands where nobody knows its link any more."""
    if row.terms is None:
        return row.expires_at
    ttl = json.loads(row.terms).get("ttl_seconds")
    return row.created_at + ttl if ttl else None


def _partial_index(name: str, table: str, columns: list[str], condition: str) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    """There is no way back: the way back is a copy made before."""
    raise NotImplementedError
