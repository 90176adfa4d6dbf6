"""What a caller may say of a session. Strict and closed, like all that is said to us."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from api.submit import openai_requests
from api.submit.schemas import SessionId

Title = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(openai_requests.printable)]
DEFAULT = "null: as the operator's settings have it."


class SessionChange(BaseModel):
    """What to change of a session; what is left out stays as it is."""

    model_config = ConfigDict(strict=True, extra="forbid")

    title: Title | None = None
    system_prompt: Annotated[str, StringConstraints(max_length=32_000)] | None = Field(
        None, description=f"Goes before every turn that has no instructions of its own; empty: none. {DEFAULT}"
    )
    context_tokens: Annotated[int, Field(ge=64, le=10_000_000)] | None = Field(
        None, description=f"The most that a turn's messages may be together: the oldest turns are left out. {DEFAULT}"
    )
    fresh_after_s: Annotated[float, Field(ge=0, le=1e9)] | None = Field(
        None, description=f"A turn this long after the last activity remembers nothing; 0: it always does. {DEFAULT}"
    )
    on_failed_turn: Literal["skip", "stop"] | None = Field(
        None, description="What becomes of turns that wait behind a failed one: they run (skip, the default) or are cancelled (stop)."
    )

    def fields(self) -> dict[str, Any]:
        """What is said, by the names of models.sessions.sessions.FIELDS."""
        said = self.model_dump(exclude_unset=True, exclude={"id"})
        return {**said, "on_failed_turn": said["on_failed_turn"] or "skip"} if "on_failed_turn" in said else said


class NewSession(SessionChange):
    """A session to make before its first turn."""

    id: SessionId = Field(description="Yours to choose: what jobs name as their `conversation`.")
