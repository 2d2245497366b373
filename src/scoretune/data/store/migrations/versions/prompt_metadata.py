"""Samples keep the metadata of their prompts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Samples that are there have none."""
    column = sa.Column("metadata", sa.JSON(), nullable=False, server_default=sa.text("'{}'"))
    op.add_column("samples", column)
