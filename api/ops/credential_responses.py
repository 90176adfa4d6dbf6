"""Response models of the operator lists of credentials and workers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.ops.response_parts import Gauges, Named, OpsPage, Pause
from api.submit.responses import Answer


class OperatorLimits(Answer):
    """Limits set by the operator, or the defaults of the settings; null: no limit."""

    rpm: int | None
    tpm: int | None
    ipm: int | None
    rpd: int | None
    max_in_flight: int | None


class Learned(Answer):
    """Limits learned from the upstream. window: calls in flight; null: unbounded."""

    rpm: int | None
    tpm: int | None
    window: float | None


class Recent(Answer):
    """Outcomes of the newest calls of the last minutes, at most 200."""

    seconds: int
    calls: int
    outcomes: dict[str, int]
    error_rate: float | None = Field(description="Share of failed, throttled, refused and unknown calls; null: no calls.")
    usual_s: float | None


class ModelSeen(Answer):
    """A credential's state for one model."""

    model: str
    limits: Gauges
    operator_limits: OperatorLimits
    learned: Learned
    paused_until: float | None = Field(description="End of a pause that the upstream requested.")
    recent: Recent


class ParkedModel(Answer):
    """A model and endpoint that a credential cannot serve now; the pool's other credentials serve them."""

    model: str
    endpoint: str
    reason: str = Field(description="The upstream's status and message.")
    at: float
    next_probe_at: float


class CredentialSeen(Answer):
    """An upstream credential without its secret."""

    id: int
    object: Literal["credential"]
    pool: Named
    kind: Literal["openai", "azure"]
    base_url: str | None = Field(description="null: OPENAI_BASE_URL.")
    api_version: str | None = Field(description="Version of Azure's deployment paths; null: Azure's v1 API.")
    weight: float
    parked: Pause | None = Field(description="The upstream refuses the credential altogether.")
    parked_models: list[ParkedModel]
    paused: Pause | None
    retired_at: float | None
    models: list[ModelSeen]
    created_at: float


class Held(Answer):
    """A job that a worker process runs."""

    id: str
    lane: int
    pool: str
    model: str
    attempt: int
    started_at: float | None


class WorkerSeen(Answer):
    """A worker process, as last reported by itself."""

    id: str
    object: Literal["worker"]
    state: Literal["working", "draining", "silent"]
    slots: int
    running: int
    started_at: float
    seen_at: float
    jobs: list[Held]


class CredentialList(OpsPage):
    """One page of credentials."""

    data: list[CredentialSeen]


class WorkerList(OpsPage):
    """One page of worker processes."""

    data: list[WorkerSeen]
