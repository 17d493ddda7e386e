"""rollover of certificate authorities"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

# Of the generations before the newest one, those that have issued are trusted by who goes by that.
_FORMER = """
UPDATE certificate_authority SET state = CASE WHEN EXISTS (
    SELECT 1 FROM certificate WHERE certificate.provider = certificate_authority.provider
    AND certificate.generation = certificate_authority.generation
) THEN 'retiring' ELSE 'withdrawn' END
WHERE generation < (
    SELECT MAX(other.generation) FROM certificate_authority AS other
    WHERE other.provider = certificate_authority.provider
)
"""


def upgrade() -> None:
    op.add_column(
        "certificate_authority",
        sa.Column("state", sa.String(), nullable=False, server_default="current"),
    )
    op.execute(_FORMER)
    with op.batch_alter_table("certificate_authority") as table:
        table.alter_column("state", server_default=None)
    for name in ("trusts", "trusts_tried"):
        op.add_column(
            "certificate_upkeep", sa.Column(name, sa.JSON(), nullable=False, server_default="[]")
        )
    for name in ("trusts_at", "trusts_tried_at"):
        op.add_column(
            "certificate_upkeep", sa.Column(name, sa.DateTime(timezone=True), nullable=True)
        )
    op.add_column(
        "certificate_upkeep",
        sa.Column("trusts_problem", sa.String(), nullable=False, server_default=""),
    )
    op.create_table(
        "rollover_omission",
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["provider", "generation"],
            ["certificate_authority.provider", "certificate_authority.generation"],
        ),
        sa.ForeignKeyConstraint(["host"], ["host.name"]),
        sa.PrimaryKeyConstraint("provider", "generation", "host"),
    )
