"""Response models of the billing routes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.submit.responses import Answer


class Balance(Answer):
    """A key's balance: granted + corrected - spent. Visitors of the chat page get null, except for their own spending."""

    object: Literal["balance"]
    has_budget: bool = Field(description="Whether jobs are refused when the budget is used up; false: spending is only recorded.")
    balance_usd: float | None
    reserved_usd: float | None = Field(description="Upper limit of the cost of all open jobs.")
    available_usd: float | None = Field(description="What the next job may cost; null: no limit.")
    granted_usd: float | None
    corrected_usd: float | None = Field(description="The operator's corrections.")
    spent_usd: float
    unknown_usd: float = Field(description="The part for calls whose outcome is unknown.")
    unpriced_calls: int = Field(description="Calls of models without a known price, charged 0.")


class UsageRow(Answer):
    """Usage of one day, model and user; null where the rows are not grouped by it."""

    object: Literal["usage"]
    day: str | None
    model: str | None
    user: str | None
    calls: int
    input_tokens: int
    output_tokens: int
    images: int
    estimated_calls: int = Field(description="Calls whose tokens this server estimated, because the upstream did not report them.")
    cost_usd: float = Field(description="Excludes unknown_usd.")
    unknown_usd: float
    unpriced_calls: int


class UsageList(Answer):
    """Usage, newest first."""

    object: Literal["list"]
    start_date: str
    end_date: str
    group_by: list[str]
    data: list[UsageRow]
    has_more: bool = Field(description="There are more rows than fit: request fewer days, or fewer groups.")


class Subscription(Answer):
    """The key's total spending limit."""

    object: Literal["billing_subscription"]
    has_payment_method: bool
    soft_limit_usd: float
    hard_limit_usd: float
    system_hard_limit_usd: float
    access_until: int


class BillingUsage(Answer):
    """The key's spending."""

    object: Literal["list"]
    total_usage: float = Field(description="In US cents.")


class Grants(Answer):
    """Always empty: single grants are not listed."""

    object: Literal["list"]
    data: list[None] = Field(max_length=0)


class CreditSummary(Answer):
    """Grants, spending and the difference, in US dollars."""

    object: Literal["credit_summary"]
    total_granted: float
    total_used: float
    total_available: float
    grants: Grants
