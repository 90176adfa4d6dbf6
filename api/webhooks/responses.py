"""What a caller is answered about webhooks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.submit.responses import Answer


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
