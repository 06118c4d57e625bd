"""Duties that one process has for all; and what a crash of the machine may have taken from uploads."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "duties",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("until", sa.Double(), nullable=False),
    )
    op.create_table(
        "run",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("boot", sa.Text(), nullable=False),
        sa.Column("unsynced", sa.Boolean(), nullable=False),
    )
    op.add_column("uploads", sa.Column("tail", sa.LargeBinary()))
    op.add_column("uploads", sa.Column("suspect", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.create_index(
        "uploads_suspect",
        "uploads",
        ["updated_at"],
        sqlite_where=sa.text("suspect = 1"),
        postgresql_where=sa.text("suspect"),
    )


def downgrade() -> None:
    """There is no way back: the way back is a copy made before."""
    raise NotImplementedError
