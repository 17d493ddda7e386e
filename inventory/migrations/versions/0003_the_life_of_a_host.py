"""the life of a host"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "removed_host",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("cluster", sa.String(), nullable=False),
        sa.Column("address", sa.String(), nullable=False),
        sa.Column("ssh_port", sa.Integer(), nullable=False),
        sa.Column("user", sa.String(), nullable=False),
        sa.Column("secret_id", sa.String(), nullable=True),
        sa.Column("host_key_line", sa.String(), nullable=False),
        sa.Column("host_key_sha256", sa.String(), nullable=False),
        sa.Column("uuid", sa.String(), nullable=True),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("vms", sa.JSON(), nullable=False),
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cleaned_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("tried_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("cleaning_problem", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["secret_id"], ["secret_version.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    for column in ("host_key_sha256", "name", "uuid"):
        op.create_index(f"ix_removed_host_{column}", "removed_host", [column], unique=False)

    # In line: SQLite adds no constraint to a table that is there, and a copy of it would break the
    # references of others to it.
    for column in ("staged_key_id", "password_secret_id"):
        op.add_column(
            "host",
            sa.Column(column, sa.String(), sa.ForeignKey("secret_version.id"), nullable=True),
            inline_references=True,
        )
    op.add_column("host", sa.Column("usage", sa.JSON(), nullable=True))
    op.add_column(
        "host", sa.Column("status_reason", sa.String(), nullable=False, server_default="")
    )
    op.add_column("host", sa.Column("status_since", sa.DateTime(timezone=True), nullable=True))
    op.add_column("host", sa.Column("checked_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column(
        "host", sa.Column("missed_checks", sa.Integer(), nullable=False, server_default="0")
    )
    op.add_column("host", sa.Column("closed", sa.Boolean(), nullable=True))
    op.add_column("host", sa.Column("read_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("host", sa.Column("peers_reach", sa.Boolean(), nullable=True))
    op.add_column("host", sa.Column("environment", sa.JSON(), nullable=True))
    for column in ("from_state", "to_state", "reason"):
        op.add_column("event", sa.Column(column, sa.String(), nullable=True))
