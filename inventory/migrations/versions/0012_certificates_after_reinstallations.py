"""certificates after re-installations"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    with op.batch_alter_table("host") as host:
        host.add_column(sa.Column("tls_again", sa.String(), nullable=True))
