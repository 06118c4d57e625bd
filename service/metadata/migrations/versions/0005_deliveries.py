"""Which receivers of events there are, how far each is, and what is on its way to it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "endpoints",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("configured", sa.Boolean(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("disabled_at", sa.Double()),
    )
    op.create_table(
        "deliveries",
        sa.Column("endpoint", sa.Text(), primary_key=True),
        sa.Column("seq", sa.BigInteger(), primary_key=True, autoincrement=False),
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.Double()),
        sa.Column("failed_at", sa.Double()),
        sa.Column("result", sa.Text()),
    )
    op.create_index("deliveries_seq", "deliveries", ["seq"])
    op.create_index(
        "deliveries_due",
        "deliveries",
        ["endpoint", "due_at", "seq"],
        sqlite_where=sa.text("due_at IS NOT NULL"),
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_index(
        "deliveries_pending",
        "deliveries",
        ["endpoint", "file_id", "seq"],
        sqlite_where=sa.text("failed_at IS NULL"),
        postgresql_where=sa.text("failed_at IS NULL"),
    )
    op.create_index("events_created", "events", ["created_at"])


def downgrade() -> None:
    """There is no way back: the way back is a copy made before."""
    raise NotImplementedError
