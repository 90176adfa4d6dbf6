"""The OpenAI surface: streams, uploads, and who waits on an open connection"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

OPEN = "status IN ('queued', 'admitted', 'running')"


def upgrade() -> None:
    op.add_column("job", sa.Column("content_type", sa.Text(), comment="of the request; null: JSON"))
    op.add_column(
        "job",
        sa.Column("streamed", sa.Boolean(), server_default=sa.text("false"), nullable=False, comment="the upstream is asked for a stream"),
    )
    op.add_column(
        "job",
        sa.Column("wants_urls", sa.Boolean(), server_default=sa.text("false"), nullable=False, comment="pictures are answered as links"),
    )
    op.add_column("job", sa.Column("fingerprint", sa.LargeBinary(), comment=FINGERPRINT))
    op.add_column("job", sa.Column("reader", sa.Uuid(), comment="the connection that waits for the answer now"))
    op.add_column("job", sa.Column("left_at", sa.DateTime(timezone=True)))
    op.add_column("job", sa.Column("transcript", sa.LargeBinary(), comment=TRANSCRIPT))
    op.create_index("job_fingerprint", "job", ["key_id", "fingerprint"], unique=False, postgresql_where=sa.text("fingerprint IS NOT NULL"))
    op.create_index("job_left", "job", ["left_at"], unique=False, postgresql_where=sa.text(f"left_at IS NOT NULL AND {OPEN}"))
    # Pictures are compressed already, and what is stored as it is can be read piece by piece.
    op.execute("ALTER TABLE artifact ALTER COLUMN content SET STORAGE EXTERNAL")


def downgrade() -> None:
    op.execute("ALTER TABLE artifact ALTER COLUMN content SET STORAGE EXTENDED")
    op.drop_index("job_left", table_name="job")
    op.drop_index("job_fingerprint", table_name="job")
    for name in ("transcript", "left_at", "reader", "fingerprint", "wants_urls", "streamed", "content_type"):
        op.drop_column("job", name)


FINGERPRINT = "of a request that waits: by it a client's own retry is recognised"
TRANSCRIPT = "of a stream: its events as they were relayed, one after another"
