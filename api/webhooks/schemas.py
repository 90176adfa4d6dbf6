"""What a caller may say of webhook endpoints: the fields of the OpenAI API and ours. Strict and closed, like all that is said to us."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from api.submit import openai_requests

Name = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(openai_requests.printable)]
Url = Annotated[
    str,
    Field(
        json_schema_extra=openai_requests.A_URL,
        description="https, on the public network; what the operator allows beyond that, docs/guides/webhooks.md says.",
    ),
]
EventTypes = Annotated[list[str], Field(min_length=1, max_length=32, description="GET /v1/webhook_event_types lists them.")]
Include = Annotated[
    list[Literal["result"]], Field(max_length=1, description='["result"]: the whole job is in the event\'s `data`, not only its id.')
]


class Said(BaseModel):
    """A body about webhooks."""

    model_config = ConfigDict(strict=True, extra="forbid")


class NewWebhookEndpoint(Said):
    """A webhook endpoint to make."""

    name: Name
    url: Url
    event_types: EventTypes
    include: Include = []


class WebhookEndpointChange(Said):
    """What to change of a webhook endpoint; what is left out stays as it is."""

    name: Name | None = None
    url: Url | None = None
    event_types: EventTypes | None = None
    include: Include | None = None
    enabled: bool | None = Field(None, description="false: it is called no more; true: it is again, as if it had never failed.")


class Rotation(Said):
    """How a signing secret is replaced."""

    keep_old_secret_active_for_24_hours: bool = Field(
        False, description="Both secrets sign for a day, so that a receiver has time to change."
    )


class Sample(Said):
    """Which event to send once, as a test."""

    event_type: str


class Redelivery(Said):
    """Which events to send again."""

    since: float = Field(ge=0, le=32_503_680_000, description="Failed events that happened since then, in Unix seconds.")
