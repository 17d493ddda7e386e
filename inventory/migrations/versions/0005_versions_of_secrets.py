"""versions of secrets"""

from datetime import UTC, datetime

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
        sa.Column("known", sa.JSON(), nullable=False),
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
        sa.Column("operation", sa.String(), nullable=True),
        sa.Column("abandoned", sa.Boolean(), nullable=False),
        sa.Column("secret_id", sa.String(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["cluster_id"], ["cluster.id"]),
        sa.ForeignKeyConstraint(["secret_id"], ["secret_version.id"]),
        sa.PrimaryKeyConstraint("cluster_id", "account", "version"),
        sa.UniqueConstraint("cluster_id", "account", "operation"),
    )
    op.create_table(
        "host_password",
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("secret_id", sa.String(), nullable=False),
        sa.Column("former_secret_id", sa.String(), nullable=True),
        sa.Column("proven_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["host"], ["host.name"]),
        sa.ForeignKeyConstraint(["secret_id"], ["secret_version.id"]),
        sa.ForeignKeyConstraint(["former_secret_id"], ["secret_version.id"]),
        sa.PrimaryKeyConstraint("host", "account"),
    )
    op.create_table(
        "password_attempt",
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("account", sa.String(), nullable=False),
        sa.Column("secret_id", sa.String(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["host"], ["host.name"]),
        sa.ForeignKeyConstraint(["secret_id"], ["secret_version.id"]),
        sa.PrimaryKeyConstraint("host", "account", "secret_id"),
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
        sa.column("created_at", sa.DateTime(timezone=True)),
    )
    connection = op.get_bind()
    rows = connection.execute(sa.select(table).order_by(table.c.created_at)).all()
    for row in rows:
        sealed = _FORMAT + bytes.fromhex(row.key_id) + row.nonce + row.ciphertext
        connection.execute(sa.update(table).where(table.c.id == row.id).values(ciphertext=sealed))
    if rows:
        _put_on_the_keyring([row.key_id for row in rows])


def _put_on_the_keyring(key_ids: list[str]) -> None:
    """The latest one goes on encrypting."""
    table = sa.table(
        "keyring",
        sa.column("id", sa.Integer()),
        sa.column("key_id", sa.String()),
        sa.column("known", sa.JSON()),
        sa.column("given_up", sa.JSON()),
        sa.column("since", sa.DateTime(timezone=True)),
    )
    row = {
        "id": 1,
        "key_id": key_ids[-1],
        "known": sorted(set(key_ids)),
        "given_up": [],
        "since": datetime.now(UTC),
    }
    op.bulk_insert(table, [row])
