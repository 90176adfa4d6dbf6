"""Request models of the webhook routes: OpenAI's fields and ours. They are strict and forbid unknown fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from api.submit import openai_requests

Name = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(openai_requests.printable)]
Url = Annotated[
    str,
    Field(
        json_schema_extra=openai_requests.A_URL,
        description="https, on the public network. docs/guides/webhooks.md: what an operator may allow beyond that.",
    ),
]
EventTypes = Annotated[list[str], Field(min_length=1, max_length=32, description="GET /v1/webhook_event_types lists them.")]
Include = Annotated[
    list[Literal["result"]], Field(max_length=1, description='["result"]: the whole job is in the event\'s `data`, not only its id.')
]


class WebhookBody(BaseModel):
    """Base of the request bodies."""

    model_config = ConfigDict(strict=True, extra="forbid")


class NewWebhookEndpoint(WebhookBody):
    """A webhook endpoint to create."""

    name: Name
    url: Url
    event_types: EventTypes
    include: Include = []


class WebhookEndpointChange(WebhookBody):
    """Changes to a webhook endpoint; omitted fields stay unchanged."""

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None
    include: Include | None = None
    enabled: bool | None = Field(
        None, description="false: no more deliveries; true: deliveries resume, and earlier failures are forgotten."
    )


class Rotation(WebhookBody):
    """How to replace a signing secret."""

    keep_old_secret_active_for_24_hours: bool = Field(
        False, description="Both secrets sign for a day, so that a receiver has time to switch."
    )


class Sample(WebhookBody):
    """The event to send once, as a test."""

    event_type: str


class Redelivery(WebhookBody):
    """The events to send again."""

    since: float = Field(ge=0, le=32_503_680_000, description="Failed events that happened since then, in Unix seconds.")
