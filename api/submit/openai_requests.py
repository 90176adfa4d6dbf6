"""The requests of the OpenAI API that wait in line: only what we rely on is checked, the rest passes through."""

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

OUTPUT_TOKENS_MOST = 10_000_000
CHOICES_MOST = 128
PICTURES_MOST = 1_000
FLOW_MOST = 256
# The lanes of requests that leave the model to the upstream.
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


def _objects(value: object) -> object:
    """A list of objects, however long: others share the memory of `value`."""
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


#: What a document can say of a webhook's URL; the rest is models/webhooks/url_policy.py's.
A_URL: dict[str, Any] = {"format": "uri", "maxLength": url_policy.MAX_CHARS}
Model = Annotated[str, StringConstraints(max_length=200), AfterValidator(printable)]
Objects = Annotated[Any, AfterValidator(_objects), WithJsonSchema({"type": "array", "items": {"type": "object"}})]
Texts = Annotated[Any, AfterValidator(_texts), WithJsonSchema({"type": ["string", "array", "object"]})]
# Of these the upstream alone can judge; what is reserved for strange ones is countable's.
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
        """The model in whose line this waits."""
        return self.model or SOME_MODEL

    @property
    def flow(self) -> str | None:
        """Who waits, as the upstream is told: one printable line, or a digest of what is none. None: nobody is named."""
        named = self.safety_identifier or self.user
        if not named or (len(named) <= FLOW_MOST and named.isprintable()):
            return named or None
        return f"sha256:{hashlib.sha256(named.encode(errors='surrogatepass')).hexdigest()}"

    @property
    def is_streamed(self) -> bool:
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
        return self.model or SOME_MODERATION


KINDS: Mapping[str, type[Upstream]] = MappingProxyType(
    {CHAT: ChatBody, IMAGES: ImageBody, EDITS: EditBody, EMBEDDINGS: EmbeddingBody, MODERATIONS: ModerationBody}
)


_INPUTS: Mapping[str, frozenset[type]] = MappingProxyType({EMBEDDINGS: frozenset({str, int, list}), MODERATIONS: frozenset({str, dict})})


def countable(endpoint: str, value: JsonObject) -> JsonObject:
    """This body with everything in it that a reservation can be computed from. value: valid; it stays as it is.

    A number that is none, or below 1, is left out, so that the default is reserved; one beyond all reason is the most there is.
    """
    numbers = {"n": CHOICES_MOST if endpoint == CHAT else PICTURES_MOST, "max_tokens": OUTPUT_TOKENS_MOST}
    numbers["max_completion_tokens"] = OUTPUT_TOKENS_MOST
    made = {**value, **{name: _within(value[name], most) for name, most in numbers.items() if name in value}}
    if endpoint == CHAT:
        made["messages"] = [_readable(message) for message in value["messages"]]
    elif endpoint in _INPUTS:
        made["input"] = _countable_input(value["input"], _INPUTS[endpoint])
    return made


def _within(value: object, most: int) -> int | None:
    return min(value, most) if type(value) is int and value >= 1 else None


def _readable(message: JsonObject) -> JsonObject:
    """The message, with texts instead of parts that are bare strings, and without parts that are nothing of the kind."""
    content = message.get("content")
    if not isinstance(content, list) or all(isinstance(part, dict) for part in content):
        return message
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {**message, "content": [part for part in parts if isinstance(part, dict)]}


def _countable_input(value: object, kinds: frozenset[type]) -> object:
    """The items, all of one of these kinds; texts of them where they are not, and the empty text when there are none."""
    items = value if isinstance(value, list) else [value]
    if len(found := {type(item) for item in items}) == 1 and found <= kinds:
        return items
    return [item if isinstance(item, str) else json_text.dump(item).decode() for item in items] or ""
