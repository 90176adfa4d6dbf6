"""A call of a client, and its result as the client's user sees it: the same types for every client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

CHAT, STREAM, IMAGE, PARTIALS, EDIT = "chat", "stream", "image", "partials", "edit"
EMBED, MODERATE, MODELS, MODEL = "embed", "moderate", "models", "model"
# Fields that differ between any two calls.
UNIQUE_FIELDS = {"id", "ids", "took_s"}


@dataclass(frozen=True)
class Call:
    """A call.

    base: the base URL as a user pastes it. more: additional members of the body. again: the next message of the same
    conversation. options: of the SDK. line: a shell line that makes the call, instead of a generated one.
    """

    base: str
    key: str
    say: str = "hello"
    kind: str = CHAT
    model: str = "gpt-6-astra-mini"
    more: Mapping[str, Any] = field(default_factory=dict)
    again: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    line: str = ""

    @property
    def chat(self) -> dict[str, Any]:
        return {"model": self.model, "messages": [{"role": "user", "content": self.say}], **self.more}


@dataclass
class Seen:
    """What the user of a client sees.

    pieces: how often new text was shown. data: results that are neither text nor images. done: `[DONE]` arrived.
    broken: an unparsable event. error: the class of the exception, or `shown` where the app shows the error itself.
    """

    text: str = ""
    id: str = ""
    pieces: int = 0
    finish: str | None = None
    error: str | None = None
    status: int | None = None
    code: str | None = None
    type: str | None = None
    param: str | None = None
    message: str | None = None
    usage: Any = None
    pictures: list[str] = field(default_factory=list)
    data: list[Any] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    done: bool | None = None
    broken: str | None = None
    took_s: float = 0

    def show(self, text: str) -> None:
        self.text += text
        self.pieces += 1

    def fail(self, error: Exception) -> None:
        self.error, self.message = type(error).__name__, str(error)
        for name in ("code", "type", "param"):
            setattr(self, name, getattr(error, name, None))
        self.status = getattr(error, "status_code", None)

    @property
    def common(self) -> dict[str, Any]:
        """The fields that must be the same at OpenAI and here."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in UNIQUE_FIELDS}
