"""out-of-band management"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "oobm",
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("driver", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("port", sa.Integer(), nullable=True),
        sa.Column("endpoint", sa.String(), nullable=False),
        sa.Column("user", sa.String(), nullable=False),
        sa.Column("privilege", sa.String(), nullable=False),
        sa.Column("cipher_suite", sa.Integer(), nullable=True),
        sa.Column("certificate", sa.String(), nullable=True),
        sa.Column("secret_id", sa.String(), nullable=False),
        sa.Column("staged_secret_id", sa.String(), nullable=True),
        sa.Column("guid", sa.String(), nullable=True),
        sa.Column("power_state", sa.String(), nullable=False),
        sa.Column("power_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("problem", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("observed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("fresh_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["host"], ["host.name"]),
        sa.ForeignKeyConstraint(["secret_id"], ["secret_version.id"]),
        sa.ForeignKeyConstraint(["staged_secret_id"], ["secret_version.id"]),
        sa.PrimaryKeyConstraint("host"),
        sa.UniqueConstraint("endpoint"),
    )
    op.create_table(
        "power_command",
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("boot_id", sa.String(), nullable=True),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("accepted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("problem", sa.String(), nullable=False),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("operation", "action"),
    )
    op.create_index("ix_power_command_host", "power_command", ["host"], unique=False)
    op.create_table(
        "power_round",
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("asked", sa.Integer(), nullable=False),
        sa.Column("answered", sa.Integer(), nullable=False),
        sa.Column("waiting", sa.Integer(), nullable=False),
        sa.Column("changed", sa.Integer(), nullable=False),
        sa.Column("oldest_observed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("counts", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("started_at"),
    )
    # In line: SQLite adds no constraint to a table that is there.
    for table in ("zone", "cluster"):
        op.add_column(
            table,
            sa.Column("oobm_enabled", sa.Boolean(), nullable=False, server_default=sa.true()),
        )
