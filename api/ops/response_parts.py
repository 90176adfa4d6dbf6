"""Parts that several response models of the operator lists share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.submit.responses import Answer


class Named(Answer):
    """A pool's id and name."""

    id: int
    name: str


class Pause(Answer):
    """The time and the reason."""

    at: float | None
    reason: str | None


class Gauge(Answer):
    """One limit and its usage in this minute (rpd: in the last 24 hours)."""

    limit: float | None = Field(description="null: no known limit.")
    used: int | None = Field(description="Sent or admitted; null: not counted without a limit.")
    left: int | None


class Gauges(Answer):
    """All limits of a credential and model, or of all credentials of a lane together."""

    rpm: Gauge
    tpm: Gauge
    ipm: Gauge
    rpd: Gauge
    max_in_flight: Gauge


class OpsPage(Answer):
    """One page of a list."""

    object: Literal["list"]
    has_more: bool
    first_id: str | int | None
    last_id: str | int | None = Field(description="Send it as `after` for the next page.")
