"""upkeep of certificates"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "certificate_upkeep",
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("crls", sa.JSON(), nullable=False),
        sa.Column("crls_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("crls_tried", sa.JSON(), nullable=False),
        sa.Column("crls_tried_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("crls_problem", sa.String(), nullable=False),
        sa.Column("renewal_tried_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("renewal_problem", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["host"], ["host.name"]),
        sa.PrimaryKeyConstraint("host"),
    )
