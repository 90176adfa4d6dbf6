"""What a caller is answered about stored completions, as pydantic models."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.answers import Answer


class StoredCompletion(BaseModel):
    """The upstream's answer, with its metadata and what OpenAI adds of the request."""

    model_config = ConfigDict(extra="allow")

    id: str
    metadata: dict[str, str]


class StoredCompletionList(Answer):
    """One page of stored completions."""

    object: Literal["list"]
    data: list[StoredCompletion]
    has_more: bool
    first_id: str | None
    last_id: str | None


class StoredMessage(BaseModel):
    """A message that was sent, as it was sent."""

    model_config = ConfigDict(extra="allow")

    id: str
    role: Any
    content: str | None
    name: Any
    content_parts: list[Any] | None = Field(description="Where the content was a list of parts; `content` is null then.")


class StoredMessageList(Answer):
    """One page of messages."""

    object: Literal["list"]
    data: list[StoredMessage]
    has_more: bool
    first_id: str | None
    last_id: str | None


class StoredCompletionDeleted(Answer):
    """It is gone."""

    object: Literal["chat.completion.deleted"]
    id: str
    deleted: Literal[True]
