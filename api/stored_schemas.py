"""What a caller may say of a stored completion."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import MetadataKey, MetadataValue
from models.stored_answer import PAIRS_MOST


class Metadata(BaseModel):
    """Pairs by which stored completions are found."""

    model_config = ConfigDict(strict=True, extra="forbid")

    metadata: dict[MetadataKey, MetadataValue] = Field(max_length=PAIRS_MOST)


class CompletionChange(BaseModel):
    """What to change of a stored completion: its metadata, all of it at once."""

    model_config = ConfigDict(strict=True, extra="forbid")

    metadata: dict[MetadataKey, MetadataValue] | None = Field(max_length=PAIRS_MOST, description="Yours: given back as it is. null: none.")
