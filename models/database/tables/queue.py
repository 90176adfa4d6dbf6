"""Lanes, the fair shares of keys and flows in them, position checkpoints, caps, and conversations."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY

from models.database.tables.columns import ZERO, metadata, timestamp

lane = Table(
    "lane",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("pool_id", ForeignKey("pool.id"), nullable=False),
    Column("model", Text, nullable=False),
    Column("virtual_time", Double, nullable=False, server_default=ZERO, comment="the turn last admitted, of all its keys"),
    Column("low_water", Double, nullable=False, server_default=ZERO, comment="of versions before 0016"),
    timestamp("wake_at"),
    timestamp("claimed_until"),
    timestamp("idle_since"),
    timestamp("paused_at"),
    Column("paused_reason", Text),
    timestamp("draining_at"),
    Column("blocked_by", Text),
    Column("leaving_at", DateTime(timezone=True), comment="since when no submit joins it any more: it will be deleted"),
    Column("queued", Integer, nullable=False, server_default=ZERO, comment="as last counted"),
    Column("oldest_at", DateTime(timezone=True), comment="since when the longest wait lasts; as last counted"),
    Column("rpm", Double, comment="what the credentials together may do; null: no limit known"),
    Column("tpm", Double),
    Column("ipm", Double),
    Column("max_in_flight", Double),
    Column("usual_s", Double, comment="how long a call takes here, smoothed"),
    UniqueConstraint("pool_id", "model"),
    Index("lane_due", "wake_at", postgresql_where=text("wake_at IS NOT NULL")),
    Index("lane_idle", "idle_since", postgresql_where=text("idle_since IS NOT NULL")),
    postgresql_with={"fillfactor": "50"},
)

# The state of a key in a lane where it has jobs. A key without jobs there has no row.
key_share = Table(
    "key_share",
    metadata,
    Column("lane_id", BigInteger, primary_key=True),
    Column("key_id", BigInteger, primary_key=True),
    Column("last_finish", Double, nullable=False, comment="in the lane's time: when what it was given ends"),
    Column("virtual_time", Double, nullable=False, comment="in the key's own time: the start tag last admitted"),
    Column("low_water", Double, nullable=False, server_default=text("'-infinity'"), comment="no queued job of it has a lower tag"),
    Column("queued", Integer, nullable=False, server_default=ZERO, comment="as last counted"),
    timestamp("idle_since"),
    postgresql_with={"fillfactor": "50"},
)

# The state of one user of a key in a lane.
key_flow = Table(
    "key_flow",
    metadata,
    Column("lane_id", BigInteger, primary_key=True),
    Column("key_id", BigInteger, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("last_finish", Double, nullable=False, comment="in the key's own time"),
    Column("weight", Double, nullable=False, server_default=text("1")),
    postgresql_with={"fillfactor": "50"},
)

key_milestones = Table(
    "key_milestones",
    metadata,
    Column("lane_id", BigInteger, primary_key=True),
    Column("key_id", BigInteger, primary_key=True),
    timestamp("set_at", nullable=False),
    Column("start_tags", ARRAY(Double), nullable=False),
    Column("ids", ARRAY(Uuid), nullable=False),
    Column("jobs", ARRAY(Integer), nullable=False, comment="how many of the key's stand before each"),
    Column("tokens", ARRAY(BigInteger), nullable=False),
    Column("images", ARRAY(BigInteger), nullable=False),
    Column("costs", ARRAY(Double), nullable=False),
)

# These two tables belong to versions before 0016, which may still run during an upgrade. A later migration drops them.
milestones = Table(
    "milestones",
    metadata,
    Column("lane_id", ForeignKey("lane.id", ondelete="CASCADE"), primary_key=True),
    timestamp("set_at", nullable=False),
    Column("start_tags", ARRAY(Double), nullable=False),
    Column("ids", ARRAY(Uuid), nullable=False),
    Column("jobs", ARRAY(Integer), nullable=False, comment="how many stand before each"),
    Column("tokens", ARRAY(BigInteger), nullable=False),
    Column("images", ARRAY(BigInteger), nullable=False),
)

flow = Table(
    "flow",
    metadata,
    Column("lane_id", BigInteger, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("last_finish", Double, nullable=False),
    Column("weight", Double, nullable=False, server_default=text("1")),
    postgresql_with={"fillfactor": "50"},
)

conversation = Table(
    "conversation",
    metadata,
    Column("id", BigInteger, Identity(), primary_key=True),
    Column("key_id", ForeignKey("key.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("turns", Integer, nullable=False, server_default=text("1")),
    Column("title", Text),
    Column("system_prompt", Text, comment="null here and below: as the settings have it"),
    Column("system_prompt_tokens", Integer, comment="what it takes of each turn; null: none, or not counted yet"),
    Column("context_tokens", Integer, comment="the most that a turn's messages may be"),
    Column("fresh_after_s", Double, comment="0: never"),
    Column("on_failed_turn", Text, nullable=False, server_default=text("'skip'")),
    Column("learned_tokens", Integer, comment="half of what the upstream found too long"),
    timestamp("created_at", nullable=False),
    timestamp("last_active_at", nullable=False),
    timestamp("deleted_at"),
    CheckConstraint("on_failed_turn IN ('skip', 'stop')", name="on_failed_turn"),
    Index("conversation_name", "key_id", "name", unique=True, postgresql_where=text("deleted_at IS NULL")),
    Index("conversation_by_key", "key_id", "last_active_at", "id", postgresql_where=text("deleted_at IS NULL")),
    Index("conversation_deleted", "id", postgresql_where=text("deleted_at IS NOT NULL")),
    Index("conversation_silent", "last_active_at"),
)

cap = Table(
    "cap",
    metadata,
    Column("scope", Text, primary_key=True, comment="key, or flow"),
    Column("owner_id", BigInteger, primary_key=True, autoincrement=False, comment="the key; of a flow: its lane"),
    Column("flow", Text, primary_key=True, comment="<key>:<user>; of a key: empty"),
    Column("endpoint", Text, primary_key=True, comment="the class of requests it is for; empty: all"),
    Column("key_id", BigInteger, nullable=False, server_default=ZERO, comment="of a flow; 0: of a key, or of this user of any key"),
    *(Column(name, Integer, comment="null: open") for name in ("max_queued", "max_in_flight", "rpm")),
    timestamp("paused_at"),
    Column("paused_reason", Text),
    timestamp("draining_at"),
    CheckConstraint("scope IN ('key', 'flow')", name="scope"),
)

cap_use = Table(
    "cap_use",
    metadata,
    Column("dispatch_id", Uuid, primary_key=True),
    Column("scope", Text, primary_key=True),
    Column("owner_id", BigInteger, primary_key=True, autoincrement=False),
    Column("flow", Text, primary_key=True),
    Column("endpoint", Text, primary_key=True),
    timestamp("at", nullable=False),
    Index("cap_use_recent", "scope", "owner_id", "flow", "endpoint", "at"),
)
