"""What operators see, as pydantic models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.submit.responses import Answer, Queue


class Named(Answer):
    """A pool by its id and name."""

    id: int
    name: str


class Pause(Answer):
    """Since when, and why."""

    at: float | None
    reason: str | None


class Gauge(Answer):
    """One limit, of this minute (rpd: of the last 24 hours)."""

    limit: float | None = Field(description="null: none is known.")
    used: int | None = Field(description="What was sent or admitted; null: not counted where there is no limit.")
    left: int | None


class Gauges(Answer):
    """Every limit of a credential and model, or of all credentials of a lane together."""

    rpm: Gauge
    tpm: Gauge
    ipm: Gauge
    rpd: Gauge
    max_in_flight: Gauge


class LaneSeen(Answer):
    """One line: who waits in it, why, and how long."""

    id: int
    object: Literal["lane"]
    pool: Named
    model: str
    waiting: int = Field(description="Exact up to 1,000; beyond it as last counted, some seconds ago.")
    admitted: int = Field(description="On their way to a worker.")
    running: int
    oldest_wait_s: float | None
    arrivals_per_min: float = Field(description="Of the last minute.")
    calls_per_min: int = Field(description="Sent to the upstream in the last minute.")
    limits: Gauges
    usual_s: float | None = Field(description="How long a call takes here.")
    blocked_by: str | None = Field(description="What those who wait wait for: a limit, `paused`, `workers`, `parked`, …; null: nothing.")
    wake_at: float | None
    eta_last_s: float | None = Field(description="Until the last in line would go, estimated.")
    paused: Pause | None
    is_draining: bool = Field(description="It takes nothing new; what waits is served.")


class PoolSeen(Answer):
    """The credentials that serve one line, and who uses them."""

    id: int
    object: Literal["pool"]
    name: str
    paused: Pause | None
    is_draining: bool = Field(description="It takes nothing new; what waits is served.")
    keys: int = Field(description="Not revoked.")
    credentials: int
    parked: int = Field(description="Of the credentials, for everything or for single models.")
    lanes: int
    waiting: int = Field(description="As last counted.")
    running: int
    created_at: float


class CapSeen(Answer):
    """What a key may have of the line; null: any number."""

    endpoint: str | None = Field(description="For this class of requests; null: for all.")
    max_queued: int | None
    max_in_flight: int | None
    rpm: int | None


class KeySeen(Answer):
    """A caller's key, without itself."""

    id: int
    object: Literal["key"]
    name: str | None
    kind: Literal["own", "issued"]
    pool: Named
    paused: Pause | None
    is_draining: bool = Field(description="It takes nothing new; what waits is served.")
    caps: list[CapSeen]
    waiting: int = Field(description="Waiting and running together are counted up to 1,000.")
    running: int = Field(description="Those on their way to a worker too.")
    created_at: float
    revoked_at: float | None


class KeyNamed(Answer):
    """A caller's key, without itself."""

    id: int
    name: str | None
    kind: Literal["own", "issued"]


class FlowSeen(Answer):
    """A user of a key, inside a lane."""

    id: str = Field(description="The lane's id, a dot, the key's id, a colon, the user.")
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
    is_draining: bool = Field(description="It takes nothing new; what waits is served.")
    is_whole: bool = Field(description="false: only the head of a very long line was counted.")


class JobSeen(Answer):
    """A job, without what was asked and answered."""

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


class OperatorLimits(Answer):
    """What the operator has said, or the settings' defaults; null: open."""

    rpm: int | None
    tpm: int | None
    ipm: int | None
    rpd: int | None
    max_in_flight: int | None


class Learned(Answer):
    """What the upstream has said or borne. window: calls in flight; null: unbounded."""

    rpm: int | None
    tpm: int | None
    window: float | None


class Recent(Answer):
    """How the newest calls of the last minutes ended, at most 200 of them."""

    seconds: int
    calls: int
    outcomes: dict[str, int]
    error_rate: float | None = Field(description="Failed, throttled, refused and unknown ones of all; null: there was none.")
    usual_s: float | None


class ModelSeen(Answer):
    """A credential with one model."""

    model: str
    limits: Gauges
    operator_limits: OperatorLimits
    learned: Learned
    paused_until: float | None = Field(description="The upstream asked for a pause until then.")
    recent: Recent


class ParkedModel(Answer):
    """A model and endpoint that a credential cannot serve for now; the pool's other credentials serve their jobs."""

    model: str
    endpoint: str
    reason: str = Field(description="The upstream's status and words.")
    at: float
    next_probe_at: float


class CredentialSeen(Answer):
    """An upstream key, without itself."""

    id: int
    object: Literal["credential"]
    pool: Named
    kind: Literal["openai", "azure"]
    base_url: str | None = Field(description="null: OPENAI_BASE_URL.")
    api_version: str | None = Field(description="Of Azure's deployment paths; null: its v1 API.")
    weight: float
    parked: Pause | None = Field(description="The upstream refuses it altogether.")
    parked_models: list[ParkedModel]
    paused: Pause | None
    retired_at: float | None
    models: list[ModelSeen]
    created_at: float


class Held(Answer):
    """A job in the hands of a worker process."""

    id: str
    lane: int
    pool: str
    model: str
    attempt: int
    started_at: float | None


class WorkerSeen(Answer):
    """A worker process, by its own last report."""

    id: str
    object: Literal["worker"]
    state: Literal["working", "draining", "silent"]
    slots: int
    running: int
    started_at: float
    seen_at: float
    jobs: list[Held]


class Listed(Answer):
    """A page of any of them."""

    object: Literal["list"]
    has_more: bool
    first_id: str | int | None
    last_id: str | int | None = Field(description="Send it as `after` for the next page.")


class LaneList(Listed):
    """Lanes."""

    data: list[LaneSeen]


class PoolList(Listed):
    """Pools."""

    data: list[PoolSeen]


class KeyList(Listed):
    """Keys by id."""

    data: list[KeySeen]


class FlowList(Listed):
    """Flows, those with most jobs waiting first."""

    data: list[FlowSeen]


class SeenJobList(Listed):
    """Jobs, newest first. A search of many ends early: it may be empty and yet `has_more`; go on with `last_id`."""

    data: list[JobSeen]


class CredentialList(Listed):
    """Credentials."""

    data: list[CredentialSeen]


class WorkerList(Listed):
    """Worker processes."""

    data: list[WorkerSeen]
