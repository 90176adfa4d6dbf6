"""The request bodies of the OpenAI API as pydantic models. They validate only the fields that we use and pass the rest through."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

from api.http import json_text
from models.content.endpoints import CHAT, EDITS, EMBEDDINGS, IMAGES, MODERATIONS
from models.platform.wire import JsonObject
from models.webhooks import url_policy

MAX_OUTPUT_TOKENS = 10_000_000
MAX_CHOICES = 128
MAX_IMAGES = 1_000
MAX_FLOW_CHARS = 256
# The lanes of requests without a model: the upstream chooses it.
DEFAULT_MODEL = "default"
DEFAULT_MODERATION_MODEL = "omni-moderation-latest"


def printable(text: str) -> str:
    """Returns the text. Raises ValueError unless it is one printable line."""
    if not text.isprintable():
        raise ValueError("must be printable, on one line")
    return text


def session_id(text: str) -> str:
    """Returns the text. Raises ValueError unless it can be a path segment of a URL."""
    if not text.isprintable() or "/" in text or "\\" in text or not text.strip("."):
        raise ValueError("must be printable, on one line, without slashes, and not dots alone")
    return text


def _objects(value: object) -> object:
    """Returns a list of objects. It checks the items without copies, because the list may be large."""
    if not isinstance(value, list):
        raise ValueError("must be a list of objects")
    for n, item in enumerate(value):
        if not isinstance(item, dict):
            raise ValueError(f"must be a list of objects, but its item {n} is none")
    return value


def _texts(value: object) -> object:
    if not isinstance(value, str | list | dict):
        raise ValueError("must be a string, a list or an object")
    return value


#: The JSON schema of a webhook URL. models/webhooks/url_policy.py checks the rest.
A_URL: dict[str, Any] = {"format": "uri", "maxLength": url_policy.MAX_CHARS}
Model = Annotated[str, StringConstraints(max_length=200), AfterValidator(printable)]
Objects = Annotated[Any, AfterValidator(_objects), WithJsonSchema({"type": "array", "items": {"type": "object"}})]
Texts = Annotated[Any, AfterValidator(_texts), WithJsonSchema({"type": ["string", "array", "object"]})]
# Only the upstream validates these numbers. `countable` decides the reservation for invalid ones.
Number = Annotated[Any, WithJsonSchema({"type": ["integer", "null"], "minimum": 1})]
PictureFormat = Annotated[
    Any,
    WithJsonSchema({"type": ["string", "null"], "enum": ["b64_json", "url", None]}),
    Field(description="url: links of ours, which expire. Not in a stream. Any model can be asked for it."),
]


class Upstream(BaseModel):
    """A request of the OpenAI API, passed on as it is."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: Model | None = Field(None, description="Any model that the upstream knows; null: the upstream's own choice.")
    user: str | None = None
    safety_identifier: str | None = None

    @property
    def lane(self) -> str:
        """The model whose lane this job waits in."""
        return self.model or DEFAULT_MODEL

    @property
    def flow(self) -> str | None:
        """The user, as the body names it; a digest if it is long or unprintable. None: the body names no user."""
        user = self.safety_identifier or self.user
        if not user or (len(user) <= MAX_FLOW_CHARS and user.isprintable()):
            return user or None
        return f"sha256:{hashlib.sha256(user.encode(errors='surrogatepass')).hexdigest()}"

    @property
    def is_streamed(self) -> bool:
        """Whether the caller asks for server-sent events."""
        return False


class _Streamed(Upstream):
    stream: bool | None = Field(None, description="true: the answer comes as server-sent events.")

    @property
    def is_streamed(self) -> bool:
        return bool(self.stream)


class ChatBody(_Streamed):
    """The body of POST /v1/chat/completions of the OpenAI API."""

    messages: Objects
    n: Number = None
    max_tokens: Number = None
    max_completion_tokens: Number = None


class ImageBody(_Streamed):
    """The body of POST /v1/images/generations of the OpenAI API."""

    prompt: str
    n: Number = None
    response_format: PictureFormat = None


class EditBody(_Streamed):
    """The body of POST /v1/images/edits of the OpenAI API, as JSON; a form's file parts `image` and `image[]` are its images."""

    prompt: str
    images: Objects
    n: Number = None
    response_format: PictureFormat = None


class EmbeddingBody(Upstream):
    """The body of POST /v1/embeddings of the OpenAI API."""

    input: Texts


class ModerationBody(Upstream):
    """The body of POST /v1/moderations of the OpenAI API."""

    input: Texts

    @property
    def lane(self) -> str:
        return self.model or DEFAULT_MODERATION_MODEL


KINDS: Mapping[str, type[Upstream]] = MappingProxyType(
    {CHAT: ChatBody, IMAGES: ImageBody, EDITS: EditBody, EMBEDDINGS: EmbeddingBody, MODERATIONS: ModerationBody}
)


_INPUTS: Mapping[str, frozenset[type]] = MappingProxyType({EMBEDDINGS: frozenset({str, int, list}), MODERATIONS: frozenset({str, dict})})


def countable(endpoint: str, value: JsonObject) -> JsonObject:
    """A copy of this valid body with only values that the reservation can be computed from.

    A number that is invalid or below 1 becomes None, so that the default is reserved; a number above the limit becomes the limit.
    """
    limits = {"n": MAX_CHOICES if endpoint == CHAT else MAX_IMAGES, "max_tokens": MAX_OUTPUT_TOKENS}
    limits["max_completion_tokens"] = MAX_OUTPUT_TOKENS
    result = {**value, **{name: _clamp(value[name], limit) for name, limit in limits.items() if name in value}}
    if endpoint == CHAT:
        result["messages"] = [_with_text_parts(message) for message in value["messages"]]
    elif endpoint in _INPUTS:
        result["input"] = _countable_input(value["input"], _INPUTS[endpoint])
    return result


def _clamp(value: object, limit: int) -> int | None:
    return min(value, limit) if type(value) is int and value >= 1 else None


def _with_text_parts(message: JsonObject) -> JsonObject:
    """The message with text parts for bare strings, and without other parts that are no objects."""
    content = message.get("content")
    if not isinstance(content, list) or all(isinstance(part, dict) for part in content):
        return message
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {**message, "content": [part for part in parts if isinstance(part, dict)]}


def _countable_input(value: object, kinds: frozenset[type]) -> object:
    """The items, if all have the same one of these types; otherwise the items as strings. An empty string without items."""
    items = value if isinstance(value, list) else [value]
    if len(types := {type(item) for item in items}) == 1 and types <= kinds:
        return items
    return [item if isinstance(item, str) else json_text.dump(item).decode() for item in items] or ""
