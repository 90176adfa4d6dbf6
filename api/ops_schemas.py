"""What operators send to /ops and are answered. Strict and closed, as all our own fields."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class AuditEntry(BaseModel):
    """One act of an operator."""

    id: str
    object: Literal["audit_entry"]
    at: float
    operator: str = Field(description="root: NOWSERVING_OPS_TOKEN; cli: a command on the server.")
    action: str
    target: str = Field(description="What was acted on, as lane:7.")
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    reason: str | None
    request_id: str | None


class AuditList(BaseModel):
    """One page of the log, newest first."""

    object: Literal["list"]
    data: list[AuditEntry]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Order(BaseModel):
    """Whatever an operator asks for may say why."""

    model_config = ConfigDict(strict=True, extra="forbid")

    reason: str | None = Field(None, max_length=500, description="Why: kept in the audit log, and shown where something is paused.")


SHOWN: tuple[type[BaseModel], ...] = (AuditEntry, AuditList, Order)
