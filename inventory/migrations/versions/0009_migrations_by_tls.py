"""migrations by TLS"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    with op.batch_alter_table("host") as host:
        host.add_column(sa.Column("tls", sa.String(), nullable=False, server_default="none"))
        host.drop_column("secured")
    hosts = sa.table("host", sa.column("name"), sa.column("tls"))
    certificates = sa.table("certificate", sa.column("host"), sa.column("installed_at"))
    installed = sa.select(certificates.c.host).where(certificates.c.installed_at.is_not(None))
    op.execute(sa.update(hosts).where(hosts.c.name.in_(installed)).values(tls="ready"))
    with op.batch_alter_table("vm_migration") as migration:
        migration.add_column(
            sa.Column("tls", sa.Boolean(), nullable=False, server_default=sa.false())
        )
    with op.batch_alter_table("certificate") as certificate:
        certificate.add_column(sa.Column("key_secret_id", sa.String(), nullable=True))
        certificate.create_foreign_key(
            "certificate_key_secret", "secret_version", ["key_secret_id"], ["id"]
        )
