"""What a caller is answered, as pydantic models: the pages and the document at /openapi.json are made from these."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Shown = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
SHOWN: tuple[Shown, ...] = ("queued", "running", "succeeded", "failed", "cancelled", "expired")


class Answer(BaseModel):
    """Every field is always there."""

    model_config = ConfigDict(extra="forbid")


class ErrorInside(Answer):
    """What went wrong and what to do next."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Answer):
    """Every error, whatever its status."""

    error: ErrorInside


class Queue(Answer):
    """Where a waiting job stands."""

    position: int = Field(description="1 is next, 0: on its way to a worker. Exact up to 10,000.")
    eta_s: float | None = Field(description="Seconds until its turn, estimated; null: nobody knows.")
    blocked_by: str | None = Field(description="What the line waits for: a limit, `paused`, `backoff`, `conversation`; null: nothing.")
    wake_at: float | None = Field(description="When the line moves again, in Unix seconds.")


class Attempt(Answer):
    """One call of the upstream."""

    n: int
    outcome: Literal["running", "succeeded", "refused", "throttled", "failed", "unknown", "cancelled", "not_sent"]
    http_status: int | None
    started_at: float | None
    ended_at: float | None
    upstream_request_id: str | None


class Usage(Answer):
    """What all attempts together used, as the upstream counted it."""

    input_tokens: int
    output_tokens: int
    images: int


class Artifact(Answer):
    """A picture that the job made."""

    id: str
    content_type: str
    bytes: int
    url: str = Field(description="Opens without a key until it expires; fetch the job again for a fresh one.")


class Job(Answer):
    """One queued OpenAI request."""

    id: str = Field(pattern="^job_[0-9a-f]{32}$")
    object: Literal["job"]
    endpoint: str
    model: str
    status: Shown
    queue: Queue | None = Field(description="null once it runs or has ended.")
    user: str
    priority: Literal["low", "normal", "high"]
    conversation: str | None
    created_at: float
    expires_at: float | None
    started_at: float | None
    ended_at: float | None
    timeout_s: float
    cancel_requested: bool
    possible_duplicate_calls: int
    attempts: list[Attempt]
    http_status: int | None = Field(description="The upstream's last status.")
    usage: Usage | None
    cost_usd: float | None = Field(description="null: no price is known for the model.")
    result: Any = Field(
        description="The upstream's body, unchanged but for links that were asked for. null in lists and in all events but the last."
    )
    artifacts: list[Artifact]
    error: dict[str, Any] | None
    metadata: dict[str, str]
    retry_of: str | None


class JobList(Answer):
    """One page of jobs, newest first."""

    object: Literal["list"]
    data: list[Job]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Event(Answer):
    """The `data` of one server-sent event of a job; its `id` is the seq."""

    type: str = Field(description="job.queued, .started, .cancelling, .succeeded, .failed, .cancelled or .expired")
    seq: int
    at: float
    detail: dict[str, Any] | None
    job: Job


class QueueEvent(Answer):
    """The `data` of a `queue` event: the job has moved up the line. It has no id."""

    type: Literal["queue"]
    job_id: str
    queue: Queue


class Health(Answer):
    """Whether this process can serve; `gone` names what it cannot reach."""

    status: Literal["ok", "unavailable"]
    gone: list[str]


class WebhookEndpoint(Answer):
    """Where events of a key go."""

    id: str = Field(pattern="^whe_[0-9a-f]{32}$")
    object: Literal["webhook_endpoint"]
    name: str
    url: str
    event_types: list[str]
    include: list[Literal["result"]]
    signing_secret: str | None = Field(None, description="Only in the answer that has just made it.")
    signing_secret_hint: str
    enabled: bool
    disabled_at: int | None
    disabled_reason: str | None
    created_at: int
    updated_at: int


class WebhookEndpointList(Answer):
    """One page of webhook endpoints, newest first."""

    object: Literal["list"]
    data: list[WebhookEndpoint]
    has_more: bool
    first_id: str | None
    last_id: str | None


class WebhookEndpointDeleted(Answer):
    """It is called no more."""

    id: str
    object: Literal["webhook_endpoint.deleted"]
    deleted: Literal[True]


class WebhookTest(Answer):
    """What a receiver answered to a sample."""

    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: str
    status_code: int = Field(description="Of the receiver.")
    success: Literal[True] = Field(description="The sample was answered, whatever the status.")
    delivery_id: str


class EventTypes(Answer):
    """What an endpoint can ask to be told of."""

    object: Literal["list"]
    data: list[str]


class WebhookSecret(Answer):
    """What signs for the webhook_url of a key's jobs."""

    object: Literal["webhook_secret"]
    signing_secret: str
    signing_secret_hint: str


class Delivery(Answer):
    """One event on its way to a receiver."""

    id: str = Field(pattern="^wh_[0-9a-f]{32}$", description="What the receiver sees as `webhook-id`.")
    object: Literal["webhook_delivery"]
    webhook_endpoint_id: str | None = Field(description="null: it goes to the job's own webhook_url.")
    event_id: str
    event_type: str
    job_id: str | None
    is_test: bool
    status: Literal["pending", "delivered", "failed"]
    attempts: int
    next_attempt_at: float | None
    last_attempt_at: float | None
    duration_ms: int | None = Field(description="Of the last attempt.")
    response_code: int | None = Field(description="What the receiver answered last; null: nothing, and `error` says why.")
    response_body: str | None = Field(description="The first kilobyte of it.")
    error: str | None
    created_at: float
    ended_at: float | None


class DeliveryList(Answer):
    """One page of deliveries, newest first."""

    object: Literal["list"]
    data: list[Delivery]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Redelivered(Answer):
    """How many failed deliveries are due again."""

    object: Literal["webhook_endpoint.redelivery"]
    webhook_endpoint_id: str
    since: float
    redelivered: int
    has_more: bool = Field(description="There are more: ask again.")
