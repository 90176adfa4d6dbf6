"""What a caller may send. Our own fields are strict and closed; inside `body` only what we rely on is checked, the rest passes through."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, WithJsonSchema

from models.errors import Invalid
from models.view import JsonObject

CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
OUTPUT_TOKENS_MOST = 10_000_000
DAY_S = 86_400


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must be printable, on one line")
    return text


def _content(value: object) -> object:
    if isinstance(value, list):
        for n, part in enumerate(value):
            if not isinstance(part, dict):
                raise ValueError(f"must be a list of objects, but its item {n} is none")
    elif value is not None and not isinstance(value, str):
        raise ValueError("must be a string, a list of parts or null")
    return value


def _no_stream(value: object) -> object:
    if value is True:
        raise ValueError("cannot be true in a job: follow it at GET /v1/jobs/{id}/events instead")
    return value


def _no_webhooks(value: object) -> None:
    if value is not None:
        raise ValueError("webhooks are not available yet: leave it out, and poll the job, wait for it with ?wait=, or follow its events")


Name = Annotated[str, StringConstraints(min_length=1, max_length=256), AfterValidator(_printable)]
Model = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_printable)]
Content = Annotated[
    Any, AfterValidator(_content), WithJsonSchema({"type": ["string", "array", "null"], "items": {"type": "object"}, "title": "Content"})
]
NoStream = Annotated[bool | None, BeforeValidator(_no_stream), WithJsonSchema({"enum": [False, None], "title": "Stream"})]
OutputTokens = Annotated[int, Field(ge=1, le=OUTPUT_TOKENS_MOST)]
MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]


class Upstream(BaseModel):
    """A request of the OpenAI API, passed on as it is."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: Model = Field(description="Any model that the upstream knows.")
    stream: NoStream = Field(None, description="Not in a job: its events are a stream of their own.")
    user: Annotated[str, StringConstraints(max_length=256), AfterValidator(_printable)] | None = None
    safety_identifier: Annotated[str, StringConstraints(max_length=256), AfterValidator(_printable)] | None = None


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    content: Content = None


class ChatBody(Upstream):
    """The body of POST /v1/chat/completions of the OpenAI API."""

    messages: list[Message] = Field(min_length=1)
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: OutputTokens | None = None
    max_completion_tokens: OutputTokens | None = None


class ImageBody(Upstream):
    """The body of POST /v1/images/generations of the OpenAI API."""

    prompt: Annotated[str, StringConstraints(min_length=1, max_length=32_000)]
    n: Annotated[int, Field(ge=1, le=10)] | None = None


class Submit(BaseModel):
    """A job to put in line."""

    model_config = ConfigDict(strict=True, extra="forbid")

    user: Name | None = Field(
        None, description="Who waits: users share a line fairly. Else body.safety_identifier, body.user, the conversation."
    )
    conversation: Name | None = Field(None, description="Jobs of one conversation run one after another, in the order they were sent.")
    priority: Literal["low", "normal", "high"] = Field("normal", description="Weight 1, 4 or 16: nobody starves.")
    expires_in_s: float | None = Field(None, ge=1, le=30 * DAY_S, description="The longest wait in line, then the job is `expired`.")
    timeout_s: float | None = Field(None, ge=1, le=3_600, description="The longest call.")
    on_lost: Literal["retry", "fail"] = Field("retry", description="What to do when nobody knows whether the call was made.")
    max_attempts: int | None = Field(None, ge=1, le=10, description="Being throttled never counts as one.")
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16, description="Yours: given back as it is.")
    webhook_url: Annotated[None, BeforeValidator(_no_webhooks)] = Field(None, description="Not available yet: refused, never ignored.")


class ChatSubmit(Submit):
    """A chat completion to put in line."""

    endpoint: Literal["/v1/chat/completions"]
    body: ChatBody


class ImageSubmit(Submit):
    """Images to put in line."""

    endpoint: Literal["/v1/images/generations"]
    body: ImageBody


def parse(payload: JsonObject) -> ChatSubmit | ImageSubmit:
    """The submit in this object. Raises Invalid, with the field and what to do about it."""
    kinds: dict[object, type[ChatSubmit | ImageSubmit]] = {CHAT: ChatSubmit, IMAGES: ImageSubmit}
    endpoint = payload.get("endpoint")
    kind = kinds.get(endpoint) if isinstance(endpoint, str) else None
    if kind is None:
        raise Invalid(f"`endpoint` is required: {CHAT} or {IMAGES}.", param="endpoint")
    try:
        return kind.model_validate(payload)
    except ValidationError as error:
        raise _refusal(error) from None  # its message quotes what was sent


def _refusal(error: ValidationError) -> Invalid:
    first = error.errors(include_url=False, include_input=False)[0]
    param = _path(first["loc"])
    said = {
        "missing": "is required",
        "extra_forbidden": "is not a field of a job. Fields of the upstream's request belong in `body`",
    }.get(first["type"], first["msg"].removeprefix("Value error, "))
    return Invalid(f"`{param}`: {said[:1].lower()}{said[1:]}.", param=param)


def _path(loc: tuple[int | str, ...]) -> str:
    path = ""
    for step in loc:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step != "[key]":
            shown = "".join(char if char.isprintable() else "?" for char in step[:64])
            path += f".{shown}" if path else shown
    return path
