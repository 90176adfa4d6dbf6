"""Request models of the session routes. They are strict and forbid unknown fields, as all our own request models do."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from api.submit import openai_requests
from api.submit.schemas import SessionId

Title = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(openai_requests.printable)]
DEFAULT = "null: the operator's setting."


class SessionChange(BaseModel):
    """Changes to a session; omitted fields stay unchanged."""

    model_config = ConfigDict(strict=True, extra="forbid")

    title: Title | None = None
    system_prompt: Annotated[str, StringConstraints(max_length=32_000)] | None = Field(
        None, description=f"Prepended to every turn that has no instructions of its own; empty: none. {DEFAULT}"
    )
    context_tokens: Annotated[int, Field(ge=64, le=10_000_000)] | None = Field(
        None, description=f"Token limit for a turn's messages together: the oldest turns are left out. {DEFAULT}"
    )
    fresh_after_s: Annotated[float, Field(ge=0, le=1e9)] | None = Field(
        None, description=f"A turn this long after the last activity starts without history; 0: never. {DEFAULT}"
    )
    on_failed_turn: Literal["skip", "stop"] | None = Field(
        None, description="Turns that wait behind a failed turn run (skip, the default) or are cancelled (stop)."
    )

    def fields(self) -> dict[str, Any]:
        """Returns the fields that were sent, under the names of models.sessions.sessions.FIELDS."""
        values = self.model_dump(exclude_unset=True, exclude={"id"})
        return {**values, "on_failed_turn": values["on_failed_turn"] or "skip"} if "on_failed_turn" in values else values


class NewSession(SessionChange):
    """A session to create before its first turn."""

    id: SessionId = Field(description="Chosen by the caller; jobs name it as their `conversation`.")
