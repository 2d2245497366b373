"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "pictures",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("ending", sa.String(length=8), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_pictures")),
    )
    op.create_table(
        "raters",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("token_hash", sa.String(length=64), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_raters")),
        sa.UniqueConstraint("token_hash", name=op.f("uq_raters_token_hash")),
    )
    op.create_table(
        "store",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_store")),
    )
    op.create_table(
        "rankings",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("rater", sa.Integer(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("order", sa.JSON(), nullable=False),
        sa.Column("seconds", sa.Float(precision=53), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["rater"], ["raters.id"], name=op.f("fk_rankings_rater")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rankings")),
        sa.UniqueConstraint("key", name=op.f("uq_rankings_key")),
    )
    op.create_index(op.f("ix_rankings_rater"), "rankings", ["rater"], unique=False)
    op.create_table(
        "samples",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("picture", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["parent"], ["samples.id"], name=op.f("fk_samples_parent")),
        sa.ForeignKeyConstraint(["picture"], ["pictures.sha256"], name=op.f("fk_samples_picture")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_samples")),
        sa.UniqueConstraint("key", name=op.f("uq_samples_key")),
    )
    op.create_index(op.f("ix_samples_parent"), "samples", ["parent"], unique=False)
    op.create_index(op.f("ix_samples_picture"), "samples", ["picture"], unique=False)
    op.create_index(
        op.f("ix_samples_prompt"), "samples", ["prompt"], unique=False, postgresql_using="hash"
    )
    op.create_table(
        "critiques",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("sample", sa.Integer(), nullable=False),
        sa.Column("critic", sa.Text(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("raw", sa.Text(), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["sample"], ["samples.id"], name=op.f("fk_critiques_sample")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_critiques")),
        sa.UniqueConstraint("key", name=op.f("uq_critiques_key")),
    )
    op.create_index(op.f("ix_critiques_sample"), "critiques", ["sample"], unique=False)
    op.create_table(
        "likes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("rater", sa.Integer(), nullable=False),
        sa.Column("sample", sa.Integer(), nullable=False),
        sa.Column("liked", sa.Boolean(), nullable=False),
        sa.Column("seconds", sa.Float(precision=53), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["rater"], ["raters.id"], name=op.f("fk_likes_rater")),
        sa.ForeignKeyConstraint(["sample"], ["samples.id"], name=op.f("fk_likes_sample")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_likes")),
        sa.UniqueConstraint("key", name=op.f("uq_likes_key")),
    )
    op.create_index(op.f("ix_likes_rater"), "likes", ["rater"], unique=False)
    op.create_index(op.f("ix_likes_sample"), "likes", ["sample"], unique=False)
    op.create_table(
        "pairs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("first", sa.Integer(), nullable=False),
        sa.Column("second", sa.Integer(), nullable=False),
        sa.Column("low", sa.Integer(), nullable=False),
        sa.Column("high", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("gold", sa.String(length=16), nullable=True),
        sa.Column("label", sa.Float(precision=53), nullable=True),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["first"], ["samples.id"], name=op.f("fk_pairs_first")),
        sa.ForeignKeyConstraint(["second"], ["samples.id"], name=op.f("fk_pairs_second")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pairs")),
        sa.UniqueConstraint("low", "high", "source", name=op.f("uq_pairs_low_high_source")),
    )
    op.create_index(op.f("ix_pairs_first"), "pairs", ["first"], unique=False)
    op.create_index(
        op.f("ix_pairs_prompt"), "pairs", ["prompt"], unique=False, postgresql_using="hash"
    )
    op.create_index(op.f("ix_pairs_second"), "pairs", ["second"], unique=False)
    op.create_table(
        "reasons",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("rater", sa.Integer(), nullable=False),
        sa.Column("sample", sa.Integer(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("box", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["rater"], ["raters.id"], name=op.f("fk_reasons_rater")),
        sa.ForeignKeyConstraint(["sample"], ["samples.id"], name=op.f("fk_reasons_sample")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_reasons")),
        sa.UniqueConstraint("key", name=op.f("uq_reasons_key")),
    )
    op.create_index(op.f("ix_reasons_rater"), "reasons", ["rater"], unique=False)
    op.create_index(op.f("ix_reasons_sample"), "reasons", ["sample"], unique=False)
    op.create_table(
        "edits",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("sample", sa.Integer(), nullable=False),
        sa.Column("critique", sa.Integer(), nullable=True),
        sa.Column("editor", sa.Text(), nullable=False),
        sa.Column("instructions", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=True),
        sa.Column("edited", sa.Integer(), nullable=True),
        sa.Column("verdict", sa.JSON(), nullable=False),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["critique"], ["critiques.id"], name=op.f("fk_edits_critique")),
        sa.ForeignKeyConstraint(["edited"], ["samples.id"], name=op.f("fk_edits_edited")),
        sa.ForeignKeyConstraint(["sample"], ["samples.id"], name=op.f("fk_edits_sample")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_edits")),
        sa.UniqueConstraint("key", name=op.f("uq_edits_key")),
    )
    op.create_index(op.f("ix_edits_critique"), "edits", ["critique"], unique=False)
    op.create_index(op.f("ix_edits_edited"), "edits", ["edited"], unique=False)
    op.create_index(op.f("ix_edits_sample"), "edits", ["sample"], unique=False)
    op.create_table(
        "votes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("pair", sa.Integer(), nullable=False),
        sa.Column("rater", sa.Integer(), nullable=False),
        sa.Column("choice", sa.String(length=16), nullable=False),
        sa.Column("left", sa.String(length=16), nullable=False),
        sa.Column("seconds", sa.Float(precision=53), nullable=False),
        sa.Column("repeat", sa.Boolean(), nullable=False),
        sa.Column("undone", sa.Float(precision=53), nullable=True),
        sa.Column("created", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(["pair"], ["pairs.id"], name=op.f("fk_votes_pair")),
        sa.ForeignKeyConstraint(["rater"], ["raters.id"], name=op.f("fk_votes_rater")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_votes")),
        sa.UniqueConstraint("key", name=op.f("uq_votes_key")),
    )
    op.create_index(op.f("ix_votes_pair"), "votes", ["pair"], unique=False)
    op.create_index(op.f("ix_votes_rater"), "votes", ["rater"], unique=False)
    op.create_index(
        "uq_votes_once",
        "votes",
        ["pair", "rater"],
        unique=True,
        sqlite_where=sa.text("NOT repeat AND undone IS NULL"),
        postgresql_where=sa.text("NOT repeat AND undone IS NULL"),
    )
