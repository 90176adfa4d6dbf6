"""Request and response models of the operator actions. Requests are strict and forbid unknown fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.ops.bulk import JobFilter

Limit = Annotated[int, Field(ge=1, le=2**31 - 1)] | None


class AuditEntry(BaseModel):
    """One action of an operator."""

    id: str
    object: Literal["audit_entry"]
    at: float
    operator: str = Field(description="root: NOWSERVING_OPS_TOKEN; cli: a command on the server.")
    action: str
    target: str = Field(description="The target of the action, such as lane:7.")
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    reason: str | None
    request_id: str | None


class AuditList(BaseModel):
    """One page of the audit log, newest first."""

    object: Literal["list"]
    data: list[AuditEntry]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Order(BaseModel):
    """Base of all actions: an optional reason."""

    model_config = ConfigDict(strict=True, extra="forbid")

    reason: str | None = Field(None, max_length=500, description="Stored in the audit log, and shown where something is paused.")


class LimitsOrder(Order):
    """Limits of a credential; omitted limits stay unchanged, null removes a limit."""

    model: str = Field("*", min_length=1, max_length=256, description="The model; *: all models without limits of their own.")
    rpm: Limit = Field(None, description="Requests per minute.")
    tpm: Limit = Field(None, description="Tokens per minute.")
    ipm: Limit = Field(None, description="Images per minute.")
    rpd: Limit = Field(None, description="Requests per day.")
    max_in_flight: Limit = Field(None, description="Concurrent calls.")


class CapsOrder(Order):
    """Caps of a key or a user; omitted caps stay unchanged, null removes a cap."""

    endpoint: str | None = Field(None, description="The endpoint, such as /v1/embeddings; null: all endpoints together.")
    max_queued: Limit = Field(None, description="Limit of waiting jobs; more are refused with 429.")
    max_in_flight: Limit = Field(None, description="Limit of running jobs; others wait.")
    rpm: Limit = Field(None, description="Limit of jobs that start in a minute; others wait.")


class NewCredential(Order):
    """A credential to add to a pool."""

    key: str = Field(min_length=1, max_length=4096, pattern="^[ -~]+$", description="The upstream's key. Stored encrypted, never shown.")
    kind: Literal["openai", "azure"] = Field("openai", description="azure: the header `api-key` and Azure's paths; needs base_url.")
    base_url: str | None = Field(None, max_length=2048, description="The upstream, if it is not OPENAI_BASE_URL.")
    api_version: str | None = Field(
        None,
        max_length=40,
        pattern="^[0-9A-Za-z.-]*$",
        description="azure only: version of the deployment paths, e.g. 2024-10-21; empty: the v1 API.",
    )
    weight: float | None = Field(None, gt=0, le=1000, description="Weight of its headroom relative to other credentials.")


class CredentialChange(Order):
    """Changes to a credential; omitted fields stay unchanged."""

    key: str | None = Field(None, min_length=1, max_length=4096, pattern="^[ -~]+$", description="Replaces the secret.")
    base_url: str | None = Field(None, max_length=2048, description="Empty: OPENAI_BASE_URL.")
    api_version: str | None = Field(
        None,
        max_length=40,
        pattern="^[0-9A-Za-z.-]*$",
        description="azure only: version of the deployment paths, e.g. 2024-10-21; empty: the v1 API.",
    )
    weight: float | None = Field(None, gt=0, le=1000, description="Weight of its headroom relative to other credentials.")


class WeightOrder(Order):
    """The share of a key or a user."""

    weight: float = Field(ge=0.01, le=1000, description="The default is 1.")


class PriorityOrder(Order):
    """A job's weight in its flow."""

    priority: Literal["low", "normal", "high"]


class FilterOrder(Order):
    """Selects jobs. All given fields must match."""

    pool: int | None = Field(None, description="The id.")
    lane: int | None = Field(None, description="The id.")
    key: int | None = Field(None, description="The id.")
    user: str | None = Field(None, max_length=256, description="The name that callers use.")
    older_than_s: float | None = Field(None, ge=0, description="Minimum time since the submit.")

    def filter(self) -> JobFilter:
        """Returns the filter of models/ops."""
        return JobFilter(pool_id=self.pool, lane_id=self.lane, key_id=self.key, user=self.user, older_than_s=self.older_than_s)


class PurgeOrder(FilterOrder):
    """Selects the jobs to cancel; at least one field is required."""

    status: Literal["queued", "running"] = Field("queued", description="running: running jobs are signalled to stop, too.")


class RetryOrder(FilterOrder):
    """Selects the jobs to retry."""

    after: str | None = Field(None, max_length=64, description="Continue after this job: `last_id` of the previous response.")


class Purge(BaseModel):
    """The result of a purge."""

    object: Literal["purge"]
    cancelled: int
    has_more: bool = Field(description="More jobs match: send the request again.")


class RetryError(BaseModel):
    """Why one job was skipped."""

    job: str
    code: str
    message: str


class Retries(BaseModel):
    """Counts of a bulk retry."""

    object: Literal["retries"]
    retried: int
    refused: int = Field(description="Jobs that could not be resubmitted; they were skipped.")
    reasons: dict[str, int] = Field(description="Skipped jobs per error code.")
    errors: list[RetryError] = Field(description="The errors of the first ten skipped jobs.")
    has_more: bool = Field(description="Send the request again, with `last_id` as `after`.")
    last_id: str | None = Field(description="The last job that was examined.")


BODIES: tuple[type[BaseModel], ...] = (
    Order, LimitsOrder, CapsOrder, NewCredential, CredentialChange, WeightOrder, PriorityOrder, FilterOrder, RetryOrder, PurgeOrder,
)  # fmt: skip
