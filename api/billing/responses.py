"""What the money routes answer, as pydantic models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.submit.responses import Answer


class Balance(Answer):
    """What a key has left. `balance_usd` is granted + corrected - spent. Null for visitors of the chat page, but for what they spent."""

    object: Literal["balance"]
    has_budget: bool = Field(description="Whether a job is refused when the money is gone; false: what is spent is only written down.")
    balance_usd: float | None
    reserved_usd: float | None = Field(description="What the jobs that have not ended may cost at most.")
    available_usd: float | None = Field(description="What the next job may cost; null: as much as you like.")
    granted_usd: float | None
    corrected_usd: float | None = Field(description="The operator's corrections.")
    spent_usd: float
    unknown_usd: float = Field(description="The part of it for calls of which nobody knows whether they were paid for.")
    unpriced_calls: int = Field(description="Calls of models without a known price, charged 0.")


class UsageRow(Answer):
    """What was used on one day, with one model, by one user; null where it was not grouped by that."""

    object: Literal["usage"]
    day: str | None
    model: str | None
    user: str | None
    calls: int
    input_tokens: int
    output_tokens: int
    images: int
    estimated_calls: int = Field(description="Calls whose tokens were counted by this server, for the upstream did not say them.")
    cost_usd: float = Field(description="Without unknown_usd.")
    unknown_usd: float
    unpriced_calls: int


class UsageList(Answer):
    """What was used, newest first."""

    object: Literal["list"]
    start_date: str
    end_date: str
    group_by: list[str]
    data: list[UsageRow]
    has_more: bool = Field(description="There are more than fit: ask for fewer days, or group by less.")


class Subscription(Answer):
    """How much the key may spend in all."""

    object: Literal["billing_subscription"]
    has_payment_method: bool
    soft_limit_usd: float
    hard_limit_usd: float
    system_hard_limit_usd: float
    access_until: int


class BillingUsage(Answer):
    """What was spent."""

    object: Literal["list"]
    total_usage: float = Field(description="In US cents.")


class Grants(Answer):
    """Not told one by one."""

    object: Literal["list"]
    data: list[None] = Field(max_length=0)


class CreditSummary(Answer):
    """What the key was given, what it spent, and the difference, in US dollars."""

    object: Literal["credit_summary"]
    total_granted: float
    total_used: float
    total_available: float
    grants: Grants
