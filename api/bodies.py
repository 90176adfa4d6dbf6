"""The requests of the OpenAI API that wait in line: only what we rely on is checked, the rest passes through."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema
from pydantic.types import FailFast

from models import reach
from models.endpoint import CHAT, EDITS, EMBEDDINGS, IMAGES, MODERATIONS

OUTPUT_TOKENS_MOST = 10_000_000
# Five times what the upstream takes.
MESSAGES_MOST = 10_000
# The lanes of requests that may leave the model to the upstream.
SOME_MODEL = "default"
SOME_MODERATION = "omni-moderation-latest"


def printable(text: str) -> str:
    """The text. Raises ValueError unless it is printable, on one line."""
    if not text.isprintable():
        raise ValueError("must be printable, on one line")
    return text


def session_id(text: str) -> str:
    """The text. Raises ValueError unless it can be a step of an address."""
    if not text.isprintable() or "/" in text or "\\" in text or not text.strip("."):
        raise ValueError("must be printable, on one line, without slashes, and not dots alone")
    return text


def _content(value: object) -> object:
    if isinstance(value, list):
        for n, part in enumerate(value):
            if not isinstance(part, dict):
                raise ValueError(f"must be a list of objects, but its item {n} is none")
    elif value is not None and not isinstance(value, str):
        raise ValueError("must be a string, a list of parts or null")
    return value


def _texts_or_tokens(value: object) -> object:
    if not isinstance(value, str | list):
        raise ValueError("must be a string, a list of strings, a list of tokens or a list of such lists")
    kinds = {type(one) for one in value} if isinstance(value, list) else {str}
    is_nested = kinds == {list}
    if not value or kinds not in ({str}, {int}, {list}) or (is_nested and not all(value)):
        raise ValueError("must not be empty, and all of its items of one kind: strings, tokens or lists of tokens")
    if is_nested and any(type(token) is not int for tokens in value for token in tokens):
        raise ValueError("must be lists of tokens: whole numbers")
    return value


def _texts_or_parts(value: object) -> object:
    items = value if isinstance(value, list) else [value]
    if not items or {type(one) for one in items} not in ({str}, {dict}) or isinstance(value, dict):
        raise ValueError("must be a string, a list of strings or a list of parts")
    return value


#: What a document can say of a webhook's URL; the rest is models/reach.py's.
A_URL: dict[str, Any] = {"format": "uri", "maxLength": reach.MOST_CHARS}
Model = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(printable)]
OneOf = Annotated[str, StringConstraints(max_length=256), AfterValidator(printable)]
Content = Annotated[
    Any, AfterValidator(_content), WithJsonSchema({"type": ["string", "array", "null"], "items": {"type": "object"}, "title": "Content"})
]
TextsOrTokens = Annotated[
    Any,
    AfterValidator(_texts_or_tokens),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": ["string", "integer", "array"]}, "minLength": 1, "minItems": 1}),
]
TextsOrParts = Annotated[
    Any,
    AfterValidator(_texts_or_parts),
    WithJsonSchema({"type": ["string", "array"], "items": {"type": ["string", "object"]}, "minItems": 1}),
]
OutputTokens = Annotated[int, Field(ge=1, le=OUTPUT_TOKENS_MOST)]
Pictures = Annotated[int, Field(ge=1, le=10)]
PictureFormat = Annotated[
    Literal["b64_json", "url"] | None,
    Field(description="url: links of ours, which expire. Not in a stream. Any model can be asked for it."),
]
Prompt = Annotated[str, StringConstraints(min_length=1, max_length=32_000)]


class Upstream(BaseModel):
    """A request of the OpenAI API, passed on as it is."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: Model | None = Field(None, description="Any model that the upstream knows; null: the upstream's own choice.")
    user: OneOf | None = None
    safety_identifier: OneOf | None = None

    @property
    def lane(self) -> str:
        """The model in whose line this waits."""
        return self.model or SOME_MODEL

    @property
    def is_streamed(self) -> bool:
        return False


class _Streamed(Upstream):
    stream: bool | None = Field(None, description="true: the answer comes as server-sent events.")

    @property
    def is_streamed(self) -> bool:
        return bool(self.stream)


class Message(BaseModel):
    """One message of a chat."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    content: Content = None


class ChatBody(_Streamed):
    """The body of POST /v1/chat/completions of the OpenAI API."""

    model: Model = Field(description="Any model that the upstream knows.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=MESSAGES_MOST), FailFast()]
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: OutputTokens | None = None
    max_completion_tokens: OutputTokens | None = None


class ImageBody(_Streamed):
    """The body of POST /v1/images/generations of the OpenAI API."""

    prompt: Prompt
    n: Pictures | None = None
    response_format: PictureFormat = None


class EditBody(_Streamed):
    """The body of POST /v1/images/edits of the OpenAI API, as JSON; a form's file parts `image` and `image[]` are its images."""

    prompt: Prompt
    images: Annotated[list[dict[str, Any]], Field(min_length=1), FailFast()]
    n: Pictures | None = None
    response_format: PictureFormat = None


class EmbeddingBody(Upstream):
    """The body of POST /v1/embeddings of the OpenAI API."""

    model: Model = Field(description="Any model that the upstream knows.")
    input: TextsOrTokens


class ModerationBody(Upstream):
    """The body of POST /v1/moderations of the OpenAI API."""

    input: TextsOrParts

    @property
    def lane(self) -> str:
        return self.model or SOME_MODERATION


KINDS: Mapping[str, type[Upstream]] = MappingProxyType(
    {CHAT: ChatBody, IMAGES: ImageBody, EDITS: EditBody, EMBEDDINGS: EmbeddingBody, MODERATIONS: ModerationBody}
)
