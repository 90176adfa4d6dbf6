"""Credentials of kind azure with their API version; the headers of a request that go on to the upstream"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

KIND = "openai: Bearer key and OpenAI's paths; azure: api-key and Azure's"
VERSION = "of azure: the api-version of deployment paths; null: the v1 API"
HEADERS = "of the caller's request, for the upstream; null: none"


def upgrade() -> None:
    op.add_column("credential", sa.Column("kind", sa.Text(), server_default=sa.text("'openai'"), nullable=False, comment=KIND))
    op.add_column("credential", sa.Column("api_version", sa.Text(), nullable=True, comment=VERSION))
    op.add_column("job", sa.Column("headers", postgresql.JSONB(), nullable=True, comment=HEADERS))


def downgrade() -> None:
    op.drop_column("job", "headers")
    op.drop_column("credential", "api_version")
    op.drop_column("credential", "kind")
