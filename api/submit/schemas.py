"""The controls of a job as pydantic models. They are strict and allow no other fields, unlike the body for the upstream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from api.submit import openai_requests
from models.content.endpoints import CHAT, EMBEDDINGS, IMAGES, MODERATIONS
from models.platform.errors import Invalid
from models.platform.wire import JsonObject
from models.webhooks import url_policy

DAY_S = 86_400


Name = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(openai_requests.printable)]
SessionId = Annotated[str, StringConstraints(min_length=1, max_length=64), AfterValidator(openai_requests.session_id)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Checked = TypeVar("Checked", bound=BaseModel)


class Controls(BaseModel):
    """How a job waits and runs."""

    model_config = ConfigDict(strict=True, extra="forbid")

    user: Name | None = Field(
        None, description="The user who waits; users share a queue fairly. Default: body.safety_identifier, body.user, or the conversation."
    )
    conversation: SessionId | None = Field(
        None,
        description="Jobs of one conversation run one after another. A chat gets the earlier turns as history: send only new `messages`.",
    )
    attachments: Annotated[list[str], Field(max_length=20)] | None = Field(
        None, description="Ids of files of the conversation, from POST /v1/sessions/{id}/attachments. Only for chats."
    )
    priority: Literal["low", "normal", "high"] = Field("normal", description="Weight 1, 4 or 16; no priority starves.")
    expires_in_s: float | None = Field(None, ge=1, le=30 * DAY_S, description="The longest wait in the queue, then the job is `expired`.")
    timeout_s: float | None = Field(None, ge=1, le=3_600, description="The longest call.")
    on_lost: Literal["retry", "fail"] = Field("retry", description="What to do when it is unknown whether the call was made.")
    on_unreadable: Literal["retry", "fail"] = Field(
        "fail", description="What to do with an unreadable response: it may have cost money, and is kept."
    )
    max_attempts: int | None = Field(None, ge=1, le=10, description="A throttled call is not counted.")
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16, description="Your own data, returned unchanged.")
    webhook_url: Annotated[str, AfterValidator(url_policy.normalize), Field(json_schema_extra=openai_requests.A_URL)] | None = Field(
        None, description="Receives an event when the job ends, signed with the secret of GET /v1/webhook_secret."
    )


class Inside(Controls):
    """The `nowserving` object in the body of an OpenAI request: how its job waits and runs. The upstream never sees it."""

    expires_in: float | None = Field(None, ge=1, le=30 * DAY_S, description="The same as expires_in_s.")
    timeout: float | None = Field(None, ge=1, le=3_600, description="The same as timeout_s.")
    idempotency_key: str | None = Field(None, description="As the header Idempotency-Key.")


class Submit(Controls):
    """A job to enqueue."""

    endpoint: str
    body: openai_requests.Upstream


class ChatSubmit(Submit):
    """A chat completion to enqueue."""

    endpoint: Literal["/v1/chat/completions"]
    body: openai_requests.ChatBody


class ImageSubmit(Submit):
    """Images to enqueue."""

    endpoint: Literal["/v1/images/generations"]
    body: openai_requests.ImageBody


class EmbeddingSubmit(Submit):
    """Embeddings to enqueue."""

    endpoint: Literal["/v1/embeddings"]
    body: openai_requests.EmbeddingBody


class ModerationSubmit(Submit):
    """A moderation to enqueue."""

    endpoint: Literal["/v1/moderations"]
    body: openai_requests.ModerationBody


# Image edits are forms, which the JSON of a job cannot hold: they only have the OpenAI route.
SUBMITS: Mapping[str, type[Submit]] = MappingProxyType(
    {CHAT: ChatSubmit, IMAGES: ImageSubmit, EMBEDDINGS: EmbeddingSubmit, MODERATIONS: ModerationSubmit}
)


def parse_submit(payload: JsonObject) -> Submit:
    """Validates this body of POST /v1/jobs. Raises Invalid with the field and the cure."""
    endpoint = payload.get("endpoint")
    kind = SUBMITS.get(endpoint) if isinstance(endpoint, str) else None
    if kind is None:
        raise Invalid(f"`endpoint` is required: one of {', '.join(SUBMITS)}.", param="endpoint")
    return validate(kind, payload)


def validate(kind: type[Checked], value: JsonObject, *, named: Callable[[str], str] = str) -> Checked:
    """Validates this value. named: maps a field to the name that the caller sent. Raises Invalid with the field and the cure."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _refusal(named(_path(first["loc"])), first["type"], first["msg"]) from None  # pydantic's message quotes the value


def _refusal(param: str, kind: str, message: str) -> Invalid:
    problem = {
        "missing": "is required",
        "extra_forbidden": "is not known here. Fields of the upstream's request belong in its own body",
    }.get(kind, message.removeprefix("Value error, "))
    return Invalid(f"`{param}`: {problem[:1].lower()}{problem[1:]}.", param=param)


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for step in loc:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step != "[key]":
            printable = "".join(char if char.isprintable() else "?" for char in step[:64])
            path += f".{printable}" if path else printable
    return path
