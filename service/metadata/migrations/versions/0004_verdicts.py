"""What a virus scanner said of each file: nothing, of those that are there."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("files", sa.Column("verdict", sa.Text(), server_default="unscanned", nullable=False))


def downgrade() -> None:
    """There is no way back: the way back is a copy made before."""
    raise NotImplementedError
