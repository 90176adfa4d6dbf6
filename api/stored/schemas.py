"""Request models of the stored completion routes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from api.submit.schemas import MetadataKey, MetadataValue
from models.sessions.stored_completions import MAX_PAIRS


class Metadata(BaseModel):
    """Metadata pairs that filter a list of stored completions."""

    model_config = ConfigDict(strict=True, extra="forbid")

    metadata: dict[MetadataKey, MetadataValue] = Field(max_length=MAX_PAIRS)


class CompletionChange(BaseModel):
    """The new metadata of a stored completion; it replaces the old metadata."""

    model_config = ConfigDict(strict=True, extra="forbid")

    metadata: dict[MetadataKey, MetadataValue] | None = Field(max_length=MAX_PAIRS, description="Replaces all metadata. null: none.")
