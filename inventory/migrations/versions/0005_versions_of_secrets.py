"""versions of secrets"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_FORMAT = b"\x01"


def upgrade() -> None:
    op.create_table(
        "keyring",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("given_up", sa.JSON(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "cluster_password",
        sa.Column("cluster_id", sa.Integer(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("secret_id", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["cluster.id"]),
        sa.ForeignKeyConstraint(["secret_id"], ["secret_version.id"]),
        sa.PrimaryKeyConstraint("cluster_id", "account", "version"),
    )
    op.create_table(
        "host_password",
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("secret_id", sa.String(), nullable=True),
        sa.Column("attempted_secret_id", sa.String(), nullable=True),
        sa.Column("former_secret_id", sa.String(), nullable=True),
        sa.Column("proven_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["host"], ["host.name"]),
        sa.ForeignKeyConstraint(["secret_id"], ["secret_version.id"]),
        sa.ForeignKeyConstraint(["attempted_secret_id"], ["secret_version.id"]),
        sa.ForeignKeyConstraint(["former_secret_id"], ["secret_version.id"]),
        sa.PrimaryKeyConstraint("host", "account"),
    )
    op.create_index("ix_host_password_secret_id", "host_password", ["secret_id"], unique=False)
    _put_into_one_piece()
    op.drop_column("secret_version", "nonce")
    op.drop_column("secret_version", "key_id")


def _put_into_one_piece() -> None:
    """Key id and nonce go before the ciphertext that they belong to."""
    table = sa.table(
        "secret_version",
        sa.column("id", sa.String()),
        sa.column("key_id", sa.String()),
        sa.column("nonce", sa.LargeBinary()),
        sa.column("ciphertext", sa.LargeBinary()),
    )
    connection = op.get_bind()
    for row in connection.execute(sa.select(table)).all():
        sealed = _FORMAT + bytes.fromhex(row.key_id) + row.nonce + row.ciphertext
        connection.execute(sa.update(table).where(table.c.id == row.id).values(ciphertext=sealed))
