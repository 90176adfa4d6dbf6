"""Response models of the stored completion routes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from api.openapi.page import Page
from api.submit.responses import Answer


class StoredCompletion(BaseModel):
    """The upstream's answer, its metadata, and the members of the request that OpenAI adds."""

    model_config = ConfigDict(extra="allow")

    id: str
    metadata: dict[str, str]


class StoredCompletionList(Page):
    """One page of stored completions."""

    data: list[StoredCompletion]


class StoredMessage(BaseModel):
    """A message of the request."""

    model_config = ConfigDict(extra="allow")

    id: str
    role: Any
    content: str | None
    name: Any
    content_parts: list[Any] | None = Field(description="The content, if it was a list of parts; `content` is null then.")


class StoredMessageList(Page):
    """One page of messages."""

    data: list[StoredMessage]


class StoredCompletionDeleted(Answer):
    """Confirms the deletion."""

    object: Literal["chat.completion.deleted"]
    id: str
    deleted: Literal[True]
