"""Response models of the operator lists of lanes, pools, keys, flows and jobs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.ops.response_parts import Gauges, Named, OpsPage, Pause
from api.submit.responses import Answer, Queue


class LaneSeen(Answer):
    """One lane: its waiting jobs, the blocking limit, and its times (wake-up, oldest job, ETA)."""

    id: int
    object: Literal["lane"]
    pool: Named
    model: str
    waiting: int = Field(description="Exact up to 1,000; above that as counted some seconds ago.")
    admitted: int = Field(description="Published to a worker, not started yet.")
    running: int
    oldest_wait_s: float | None
    arrivals_per_min: float = Field(description="In the last minute.")
    calls_per_min: int = Field(description="Sent to the upstream in the last minute.")
    limits: Gauges
    usual_s: float | None = Field(description="Median duration of a call here.")
    blocked_by: str | None = Field(description="Why jobs wait: a limit, `paused`, `workers`, `parked`, …; null: no reason.")
    wake_at: float | None
    eta_last_s: float | None = Field(description="Estimated time until the last waiting job starts.")
    paused: Pause | None
    is_draining: bool = Field(description="No new jobs are accepted; waiting jobs are served.")


class PoolSeen(Answer):
    """A pool: its credentials, its keys, and the jobs in its lanes."""

    id: int
    object: Literal["pool"]
    name: str
    paused: Pause | None
    is_draining: bool = Field(description="No new jobs are accepted; waiting jobs are served.")
    keys: int = Field(description="Keys that are not revoked.")
    credentials: int
    parked: int = Field(description="Parked credentials, for everything or for single models.")
    lanes: int
    waiting: int = Field(description="As counted last.")
    running: int
    created_at: float


class CapSeen(Answer):
    """The caps of a key; null: no cap."""

    endpoint: str | None = Field(description="For requests to this endpoint; null: for all.")
    max_queued: int | None
    max_in_flight: int | None
    rpm: int | None


class KeySeen(Answer):
    """A caller's key without its secret."""

    id: int
    object: Literal["key"]
    name: str | None
    kind: Literal["own", "issued"]
    pool: Named
    paused: Pause | None
    is_draining: bool = Field(description="No new jobs are accepted; waiting jobs are served.")
    caps: list[CapSeen]
    waiting: int = Field(description="Waiting and running jobs together are counted up to 1,000.")
    running: int = Field(description="Includes jobs published to a worker.")
    created_at: float
    revoked_at: float | None


class KeyNamed(Answer):
    """A caller's key without its secret."""

    id: int
    name: str | None
    kind: Literal["own", "issued"]


class FlowSeen(Answer):
    """A user of a key in a lane."""

    id: str = Field(description="<lane id>.<key id>:<user>")
    object: Literal["flow"]
    lane: int
    pool: str
    model: str
    key: KeyNamed
    user: str
    weight: float
    waiting: int
    running: int
    oldest_wait_s: float | None
    oldest_at: float | None
    paused: Pause | None
    is_draining: bool = Field(description="No new jobs are accepted; waiting jobs are served.")
    is_whole: bool = Field(description="false: only the head of a very long queue was counted.")


class JobSeen(Answer):
    """A job without its request and result."""

    id: str
    object: Literal["job"]
    status: Literal["queued", "admitted", "running", "succeeded", "failed", "cancelled", "expired"]
    queue: Queue | None
    key: KeyNamed
    lane: int
    pool: str
    endpoint: str
    model: str
    user: str
    priority: str
    created_at: float
    started_at: float | None
    ended_at: float | None
    waited_s: float
    attempts: int
    credential: int | None
    cancel_requested: bool
    http_status: int | None
    error_code: str | None


class LaneList(OpsPage):
    """One page of lanes."""

    data: list[LaneSeen]


class PoolList(OpsPage):
    """One page of pools."""

    data: list[PoolSeen]


class KeyList(OpsPage):
    """One page of keys, by id."""

    data: list[KeySeen]


class FlowList(OpsPage):
    """One page of flows, those with most waiting jobs first."""

    data: list[FlowSeen]


class SeenJobList(OpsPage):
    """One page of jobs, newest first. A long search returns early: an empty page may have `has_more`; continue after `last_id`."""

    data: list[JobSeen]
