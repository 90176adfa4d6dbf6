"""Refusals: credentials put aside for one model and endpoint; of a job, refusals for load, by credential, and its running time"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "parked_model",
        sa.Column("credential_id", sa.BigInteger(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False, comment="status and words of the upstream's refusal"),
        sa.Column("job_id", sa.Uuid(), nullable=False, comment="the job that was refused last"),
        sa.Column("parked_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("probe_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column(
            "probes", sa.Integer(), server_default=sa.text("0"), nullable=False,
            comment="refused in a row; each doubles the time until the next",
        ),
        sa.ForeignKeyConstraint(["credential_id"], ["credential.id"], name=op.f("parked_model_credential_id_fkey")),
        sa.PrimaryKeyConstraint("credential_id", "model", "endpoint", name=op.f("parked_model_pkey")),
    )  # fmt: skip
    op.add_column(
        "job", sa.Column("throttles", sa.SmallInteger(), server_default=sa.text("0"), nullable=False, comment="refusals for load")
    )
    op.add_column(
        "job",
        sa.Column(
            "refusals", postgresql.JSONB(), nullable=True, comment="of credentials that cannot serve it: [{credential_id, status, error}]"
        ),
    )
    op.add_column(
        "job",
        sa.Column(
            "ran_s", sa.Double(), server_default=sa.text("0"), nullable=False, comment="of timeout_s, what attempts that ended have taken"
        ),
    )


def downgrade() -> None:
    for name in ("ran_s", "refusals", "throttles"):
        op.drop_column("job", name)
    op.drop_table("parked_model")
