"""maintenance of many"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "hook_run",
        sa.Column("operation", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("command", sa.JSON(), nullable=False),
        sa.Column("exit_status", sa.Integer(), nullable=True),
        sa.Column("problem", sa.String(), nullable=True),
        sa.Column("output", sa.String(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("operation", "host", "stage", "attempt"),
    )
    op.create_table(
        "maintenance_ticket",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("cluster", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("workflow_id", sa.String(), nullable=False),
        sa.Column("first_run_id", sa.String(), nullable=False),
        sa.Column("granted", sa.Boolean(), nullable=False),
        sa.Column("queued_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("host"),
    )
    with op.batch_alter_table("maintenance_ticket", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_maintenance_ticket_cluster"), ["cluster"], unique=False
        )

    op.create_table(
        "setting",
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("scope_name", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_by", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "scope_name", "name"),
    )
    op.create_table(
        "affinity_group",
        sa.Column("cluster", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cluster"],
            ["cluster.name"],
        ),
        sa.PrimaryKeyConstraint("cluster", "name"),
    )
    op.create_table(
        "vm_policy",
        sa.Column("cluster", sa.String(), nullable=False),
        sa.Column("vm", sa.String(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cluster"],
            ["cluster.name"],
        ),
        sa.PrimaryKeyConstraint("cluster", "vm"),
    )
    op.create_table(
        "affinity_member",
        sa.Column("cluster", sa.String(), nullable=False),
        sa.Column("affinity_group", sa.String(), nullable=False),
        sa.Column("vm", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cluster", "affinity_group"],
            ["affinity_group.cluster", "affinity_group.name"],
        ),
        sa.PrimaryKeyConstraint("cluster", "affinity_group", "vm"),
    )
    op.create_table(
        "host_tag",
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("tag", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["host"],
            ["host.name"],
        ),
        sa.PrimaryKeyConstraint("host", "tag"),
    )
    with op.batch_alter_table("host", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("secured", sa.Boolean(), nullable=False, server_default=sa.false())
        )

    with op.batch_alter_table("reservation", schema=None) as batch_op:
        batch_op.add_column(sa.Column("lease_host", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(
            sa.Column("migrating", sa.Boolean(), nullable=False, server_default=sa.true())
        )

    op.execute("UPDATE reservation SET lease_host = source")

    with op.batch_alter_table("vm_migration", schema=None) as batch_op:
        batch_op.add_column(
            sa.Column("dirty_rate_mib_s", sa.Float(), nullable=False, server_default="0")
        )
        batch_op.add_column(
            sa.Column("iteration", sa.Integer(), nullable=False, server_default="0")
        )
        batch_op.add_column(
            sa.Column("throttle_percent", sa.Integer(), nullable=False, server_default="0")
        )
        batch_op.add_column(sa.Column("expected_end_at", sa.DateTime(timezone=True), nullable=True))
