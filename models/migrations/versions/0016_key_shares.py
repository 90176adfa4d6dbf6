"""Fair shares in two levels: keys of a pool first, users of a key second"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

COMMENTS = (
    ("lane", "virtual_time", "the turn last admitted, of all its keys"),
    ("lane", "low_water", "of versions before 0016"),
    ("job", "start_tag", "in its key's own time; below 0: before all jobs of the lane"),
    ("cap", "flow", "<key>:<user>; of a key: empty"),
)


def upgrade() -> None:
    one = sa.text("1")
    op.add_column("key", sa.Column("weight", sa.Double(), server_default=one, nullable=False, comment="its part of each lane beside the pool's other keys"))  # fmt: skip  # noqa: E501
    op.add_column("cap", sa.Column("key_id", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="of a flow; 0: of a key, or of this user of any key"))  # fmt: skip  # noqa: E501
    op.add_column("lane", sa.Column("leaving_at", sa.DateTime(timezone=True), comment="since when no submit joins it any more: it will be deleted"))  # fmt: skip  # noqa: E501
    op.create_table(
        "key_share",
        sa.Column("lane_id", sa.BigInteger(), nullable=False),
        sa.Column("key_id", sa.BigInteger(), nullable=False),
        sa.Column("last_finish", sa.Double(), nullable=False, comment="in the lane's time: when what it was given ends"),
        sa.Column("virtual_time", sa.Double(), nullable=False, comment="in the key's own time: the start tag last admitted"),
        sa.Column("low_water", sa.Double(), server_default=sa.text("'-infinity'"), nullable=False, comment="no queued job of it has a lower tag"),  # noqa: E501
        sa.Column("queued", sa.Integer(), server_default=sa.text("0"), nullable=False, comment="as last counted"),
        sa.Column("idle_since", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("lane_id", "key_id", name=op.f("key_share_pkey")),
        postgresql_with={"fillfactor": "50"},
    )  # fmt: skip
    op.create_table(
        "key_flow",
        sa.Column("lane_id", sa.BigInteger(), nullable=False),
        sa.Column("key_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("last_finish", sa.Double(), nullable=False, comment="in the key's own time"),
        sa.Column("weight", sa.Double(), server_default=one, nullable=False),
        sa.PrimaryKeyConstraint("lane_id", "key_id", "name", name=op.f("key_flow_pkey")),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "key_milestones",
        sa.Column("lane_id", sa.BigInteger(), nullable=False),
        sa.Column("key_id", sa.BigInteger(), nullable=False),
        sa.Column("set_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("start_tags", postgresql.ARRAY(sa.Double()), nullable=False),
        sa.Column("ids", postgresql.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("jobs", postgresql.ARRAY(sa.Integer()), nullable=False, comment="how many of the key's stand before each"),
        sa.Column("tokens", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("images", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("costs", postgresql.ARRAY(sa.Double()), nullable=False),
        sa.PrimaryKeyConstraint("lane_id", "key_id", name=op.f("key_milestones_pkey")),
    )
    for table, column, comment in COMMENTS:
        op.alter_column(table, column, comment=comment)
    # Those who wait keep their order inside their key; weights stay with the keys whose users have them.
    op.execute("""
        INSERT INTO key_flow (lane_id, key_id, name, last_finish, weight)
        SELECT job.lane_id, job.key_id, job.flow, max(job.start_tag + job.share), coalesce(max(flow.weight), 1)
        FROM job LEFT JOIN flow ON flow.lane_id = job.lane_id AND flow.name = job.flow
        WHERE job.status = 'queued' OR flow.weight <> 1 GROUP BY job.lane_id, job.key_id, job.flow
    """)
    op.execute("""
        INSERT INTO key_share (lane_id, key_id, last_finish, virtual_time)
        SELECT DISTINCT job.lane_id, job.key_id, lane.virtual_time, lane.virtual_time
        FROM job JOIN lane ON lane.id = job.lane_id WHERE job.status = 'queued'
    """)
    # Writes wait while it is built (docs/guides/deploy.md). The old one goes last: the version before finds the line by sorting then.
    op.create_index(
        "job_queue", "job", ["lane_id", "key_id", "start_tag", "id"],
        postgresql_where=sa.text("status = 'queued' AND NOT held"), postgresql_include=["tokens", "images", "cost"],
    )  # fmt: skip
    op.create_index("job_flow", "job", ["lane_id", "key_id", "flow", "start_tag"],
                    postgresql_where=sa.text("flow IS NOT NULL AND status = 'queued'"))  # fmt: skip
    op.drop_index("job_line", "job")


def downgrade() -> None:
    op.create_index(
        "job_line", "job", ["lane_id", "start_tag", "id"],
        postgresql_where=sa.text("status = 'queued' AND NOT held"), postgresql_include=["tokens", "images"],
    )  # fmt: skip
    op.drop_index("job_flow", "job")
    op.drop_index("job_queue", "job")
    for table in ("key_milestones", "key_flow", "key_share"):
        op.drop_table(table)
    op.drop_column("lane", "leaving_at")
    op.drop_column("cap", "key_id")
    op.drop_column("key", "weight")
