"""Response models of the webhook routes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.openapi.page import Page
from api.submit.responses import Answer


class WebhookEndpoint(Answer):
    """Receives events of a key."""

    id: str = Field(pattern="^whe_[0-9a-f]{32}$")
    object: Literal["webhook_endpoint"]
    name: str
    url: str
    event_types: list[str]
    include: list[Literal["result"]]
    signing_secret: str | None = Field(None, description="Only in the response that creates or rotates it.")
    signing_secret_hint: str
    enabled: bool
    disabled_at: int | None
    disabled_reason: str | None
    created_at: int
    updated_at: int


class WebhookEndpointList(Page):
    """One page of webhook endpoints, newest first."""

    data: list[WebhookEndpoint]


class WebhookEndpointDeleted(Answer):
    """Confirms the deletion."""

    id: str
    object: Literal["webhook_endpoint.deleted"]
    deleted: Literal[True]


class WebhookTest(Answer):
    """The receiver's response to a sample."""

    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: str
    status_code: int = Field(description="Of the receiver.")
    success: Literal[True] = Field(description="The receiver responded, with any status.")
    delivery_id: str


class EventTypes(Answer):
    """The event types that an endpoint can subscribe to."""

    object: Literal["list"]
    data: list[str]


class WebhookSecret(Answer):
    """Signs deliveries to the webhook_url of a key's jobs."""

    object: Literal["webhook_secret"]
    signing_secret: str
    signing_secret_hint: str


class Delivery(Answer):
    """The delivery of one event to a receiver."""

    id: str = Field(pattern="^wh_[0-9a-f]{32}$", description="Sent to the receiver as `webhook-id`.")
    object: Literal["webhook_delivery"]
    webhook_endpoint_id: str | None = Field(description="null: the delivery goes to the job's own webhook_url.")
    event_id: str
    event_type: str
    job_id: str | None
    is_test: bool
    status: Literal["pending", "delivered", "failed"]
    attempts: int
    next_attempt_at: float | None
    last_attempt_at: float | None
    duration_ms: int | None = Field(description="Of the last attempt.")
    response_code: int | None = Field(description="The receiver's last status; null: it did not respond, see `error`.")
    response_body: str | None = Field(description="The first kilobyte of it.")
    error: str | None
    created_at: float
    ended_at: float | None


class DeliveryList(Page):
    """One page of deliveries, newest first."""

    data: list[Delivery]


class Redelivered(Answer):
    """The number of failed deliveries that were scheduled again."""

    object: Literal["webhook_endpoint.redelivery"]
    webhook_endpoint_id: str
    since: float
    redelivered: int
    has_more: bool = Field(description="There are more: send the request again.")
