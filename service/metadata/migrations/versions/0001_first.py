"""Uploads with their ledger and blocks, links, files, events."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "uploads",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("protocol", sa.Text(), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("jti", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text()),
        sa.Column("terms", sa.Text(), nullable=False),
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("block_size", sa.BigInteger(), nullable=False),
        sa.Column("strong_hash", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("updated_at", sa.Double(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("length", sa.BigInteger()),
        sa.Column("deferred", sa.Boolean(), nullable=False),
        sa.Column("metadata", sa.Text()),
        sa.Column("filename", sa.Text()),
        sa.Column("media_type", sa.Text()),
        sa.Column("concat", sa.Text()),
        sa.Column("concat_kind", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("problem", sa.Text()),
        sa.Column("problem_detail", sa.Text()),
        sa.Column("lease_owner", sa.Text()),
        sa.Column("lease_until", sa.Double()),
        sa.Column("lease_asked", sa.Integer(), nullable=False),
    )
    op.create_index("uploads_file", "uploads", ["file_id", "created_at"])
    live = "state IN ('receiving', 'finishing', 'ready') AND concat_kind <> 'partial'"
    _partial_index("uploads_file_live", "uploads", ["file_id"], live, unique=True)
    op.create_index("uploads_jti", "uploads", ["jti"])
    _partial_index("uploads_receiving", "uploads", ["expires_at", "offset", "length", "state"], "state = 'receiving'")
    _partial_index("uploads_finishing", "uploads", ["updated_at"], "state = 'finishing'")
    _partial_index("uploads_partials", "uploads", ["expires_at"], "state = 'ready' AND concat_kind = 'partial'")
    ended = "state IN ('ready', 'failed', 'expired', 'terminated')"
    _partial_index("uploads_ended", "uploads", ["updated_at"], ended)
    _partial_index("uploads_leased", "uploads", ["lease_owner"], "lease_owner IS NOT NULL")

    op.create_table(
        "final_partials",
        sa.Column("final_id", sa.Text(), primary_key=True),
        sa.Column("position", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("partial_id", sa.Text(), nullable=False),
    )
    op.create_index("final_partials_partial", "final_partials", ["partial_id"])
    op.create_table(
        "parts",
        sa.Column("upload_id", sa.Text(), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("end", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("etag", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
    )
    op.create_table(
        "blocks",
        sa.Column("upload_id", sa.Text(), primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("xxh128", sa.LargeBinary(), nullable=False),
        sa.Column("sha256", sa.LargeBinary()),
    )
    op.create_table(
        "links",
        sa.Column("issuer", sa.Text(), primary_key=True),
        sa.Column("jti", sa.Text(), primary_key=True),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("uploads", sa.Text(), nullable=False),
        sa.Column("partials", sa.Integer(), nullable=False),
        sa.Column("partial_bytes", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
    )
    op.create_index("links_expires", "links", ["expires_at"])
    op.create_table(
        "files",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("upload_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("block_size", sa.BigInteger(), nullable=False),
        sa.Column("root_algorithm", sa.Text(), nullable=False),
        sa.Column("root", sa.LargeBinary(), nullable=False),
        sa.Column("block_xxh128", sa.LargeBinary(), nullable=False),
        sa.Column("block_sha256", sa.LargeBinary()),
        sa.Column("sha256_root", sa.LargeBinary()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("owner", sa.Text()),
        sa.Column("sha256", sa.Text()),
        sa.Column("media_type", sa.Text()),
        sa.Column("sniffed_type", sa.Text()),
        sa.Column("filename", sa.Text()),
        sa.Column("ref", sa.Text()),
        sa.Column("expires_at", sa.Double()),
        sa.Column("deleted_at", sa.Double()),
    )
    _partial_index("files_live", "files", ["expires_at", "size", "deleted_at"], "deleted_at IS NULL")
    _partial_index("files_deleted", "files", ["deleted_at"], "deleted_at IS NOT NULL")
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sqlite_autoincrement=True,
    )


def _partial_index(name: str, table: str, columns: list[str], condition: str, *, unique: bool = False) -> None:
    where = sa.text(condition)
    op.create_index(name, table, columns, unique=unique, sqlite_where=where, postgresql_where=where)


def downgrade() -> None:
    """There is no way back: the way back is a copy made before."""
    raise NotImplementedError
