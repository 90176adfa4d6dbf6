"""What operators send to /ops and are answered. Strict and closed, as all our own fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.ops.bulk import JobFilter

Limit = Annotated[int, Field(ge=1, le=2**31 - 1)] | None


class AuditEntry(BaseModel):
    """One act of an operator."""

    id: str
    object: Literal["audit_entry"]
    at: float
    operator: str = Field(description="root: NOWSERVING_OPS_TOKEN; cli: a command on the server.")
    action: str
    target: str = Field(description="What was acted on, as lane:7.")
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    reason: str | None
    request_id: str | None


class AuditList(BaseModel):
    """One page of the log, newest first."""

    object: Literal["list"]
    data: list[AuditEntry]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Order(BaseModel):
    """Whatever an operator asks for may say why."""

    model_config = ConfigDict(strict=True, extra="forbid")

    reason: str | None = Field(None, max_length=500, description="Why: kept in the audit log, and shown where something is paused.")


class LimitsOrder(Order):
    """Limits of a credential; what is left out stays, null opens."""

    model: str = Field("*", min_length=1, max_length=256, description="For this model; *: for all without their own.")
    rpm: Limit = Field(None, description="Requests a minute.")
    tpm: Limit = Field(None, description="Tokens a minute.")
    ipm: Limit = Field(None, description="Images a minute.")
    rpd: Limit = Field(None, description="Requests a day.")
    max_in_flight: Limit = Field(None, description="Calls at a time.")


class CapsOrder(Order):
    """Caps of a key or a user; what is left out stays, null takes it away."""

    endpoint: str | None = Field(None, description="For this class of requests, as /v1/embeddings; null: for all together.")
    max_queued: Limit = Field(None, description="Jobs that may wait; more are refused with 429.")
    max_in_flight: Limit = Field(None, description="Jobs that may run at a time; the others wait.")
    rpm: Limit = Field(None, description="Jobs that may start in a minute; the others wait.")


class NewCredential(Order):
    """One more upstream key behind a pool."""

    key: str = Field(min_length=1, max_length=4096, pattern="^[ -~]+$", description="The upstream's key. Stored encrypted, shown never.")
    kind: Literal["openai", "azure"] = Field("openai", description="azure: the header `api-key` and Azure's paths; needs base_url.")
    base_url: str | None = Field(None, max_length=2048, description="Another upstream than OPENAI_BASE_URL.")
    api_version: str | None = Field(
        None, max_length=40, pattern="^[0-9A-Za-z.-]*$", description="Of azure: its deployment paths, e.g. 2024-10-21; none: its v1 API."
    )
    weight: float | None = Field(None, gt=0, le=1000, description="By which its room counts against that of others.")


class CredentialChange(Order):
    """What is left out stays."""

    key: str | None = Field(None, min_length=1, max_length=4096, pattern="^[ -~]+$", description="A new secret in place of the old one.")
    base_url: str | None = Field(None, max_length=2048, description="Empty: OPENAI_BASE_URL.")
    api_version: str | None = Field(
        None, max_length=40, pattern="^[0-9A-Za-z.-]*$", description="Of azure: its deployment paths, e.g. 2024-10-21; none: its v1 API."
    )
    weight: float | None = Field(None, gt=0, le=1000, description="By which its room counts against that of others.")


class WeightOrder(Order):
    """A user's share of a lane."""

    weight: float = Field(ge=0.01, le=1000, description="1 is everybody's.")


class PriorityOrder(Order):
    """A job's weight in its flow."""

    priority: Literal["low", "normal", "high"]


class FilterOrder(Order):
    """Which jobs. Fields that are given must all fit."""

    pool: int | None = Field(None, description="Its id.")
    lane: int | None = Field(None, description="Its id.")
    key: int | None = Field(None, description="Its id.")
    user: str | None = Field(None, max_length=256, description="As callers name it.")
    older_than_s: float | None = Field(None, ge=0, description="Submitted longer ago.")

    def filter(self) -> JobFilter:
        return JobFilter(pool_id=self.pool, lane_id=self.lane, key_id=self.key, user=self.user, older_than_s=self.older_than_s)


class PurgeOrder(FilterOrder):
    """Which jobs are cancelled; at least one field says."""

    status: Literal["queued", "running"] = Field("queued", description="running: those that run are told to stop, too.")


class RetryOrder(FilterOrder):
    """Which jobs are retried."""

    after: str | None = Field(None, max_length=64, description="Go on behind this job: `last_id` of the answer before.")


class Purge(BaseModel):
    """What a purge came to."""

    object: Literal["purge"]
    cancelled: int
    has_more: bool = Field(description="Ask again for the rest.")


class RetryError(BaseModel):
    """Why one job was passed over."""

    job: str
    code: str
    message: str


class Retries(BaseModel):
    """Counts of a bulk retry."""

    object: Literal["retries"]
    retried: int
    refused: int = Field(description="Jobs that could not be resubmitted; each was passed over.")
    reasons: dict[str, int] = Field(description="How many of them for which error code.")
    errors: list[RetryError] = Field(description="The first ten of them.")
    has_more: bool = Field(description="Send the same again, with `last_id` as `after`.")
    last_id: str | None = Field(description="The last job that was looked at.")


BODIES: tuple[type[BaseModel], ...] = (
    Order, LimitsOrder, CapsOrder, NewCredential, CredentialChange, WeightOrder, PriorityOrder, FilterOrder, RetryOrder, PurgeOrder,
)  # fmt: skip
