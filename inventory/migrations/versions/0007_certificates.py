"""certificates"""

from secrets import token_hex

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    with op.batch_alter_table("cluster") as cluster:
        cluster.add_column(sa.Column("certificate_id", sa.String(), nullable=True))
    clusters = sa.table("cluster", sa.column("id"), sa.column("certificate_id"))
    for (row,) in op.get_bind().execute(sa.select(clusters.c.id)).all():
        op.execute(
            sa.update(clusters).where(clusters.c.id == row).values(certificate_id=token_hex(8))
        )
    with op.batch_alter_table("cluster") as cluster:
        cluster.alter_column("certificate_id", existing_type=sa.String(), nullable=False)
    op.create_table(
        "certificate_authority",
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=False),
        sa.Column("not_after", sa.DateTime(timezone=True), nullable=False),
        sa.Column("chain", sa.JSON(), nullable=False),
        sa.Column("key_secret_id", sa.String(), nullable=True),
        sa.Column("crl_counter", sa.Integer(), nullable=False),
        sa.Column("crl", sa.LargeBinary(), nullable=True),
        sa.Column("crl_number", sa.String(), nullable=True),
        sa.Column("crl_this_update", sa.DateTime(timezone=True), nullable=True),
        sa.Column("crl_next_update", sa.DateTime(timezone=True), nullable=True),
        sa.Column("crl_entries", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["key_secret_id"],
            ["secret_version.id"],
        ),
        sa.PrimaryKeyConstraint("provider", "generation"),
    )
    op.create_table(
        "certificate",
        sa.Column("request", sa.String(), nullable=False),
        sa.Column("provider", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("serial", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=True),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("dns_names", sa.JSON(), nullable=False),
        sa.Column("ip_addresses", sa.JSON(), nullable=False),
        sa.Column("key_sha256", sa.String(), nullable=False),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=False),
        sa.Column("not_after", sa.DateTime(timezone=True), nullable=False),
        sa.Column("issued_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("issued_by", sa.String(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revocation_reason", sa.String(), nullable=True),
        sa.Column("installed_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("pem", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["provider", "generation"],
            ["certificate_authority.provider", "certificate_authority.generation"],
        ),
        sa.PrimaryKeyConstraint("request"),
        sa.UniqueConstraint("provider", "generation", "serial"),
    )
    for column in ("host", "key_sha256", "not_after", "serial"):
        op.create_index(f"ix_certificate_{column}", "certificate", [column], unique=False)
