"""Descriptions of the billing routes for the OpenAPI document: ours, and the former ones of the OpenAI API."""

from __future__ import annotations

from functools import partial

from api.billing import responses as billing_responses
from api.openapi.route import JSON, Route, query
from models.billing.statement import GROUPS

_DAYS = (
    query("start_date", "The first day, in UTC.", type="string", format="date"),
    query("end_date", "The last day, in UTC, included.", type="string", format="date"),
)
_route = partial(Route, tag="money", errors=(400, 401, 503))

ROUTES: tuple[Route, ...] = (
    _route("get", "/v1/balance", "getBalance", "Retrieve your key's balance", {200: ("The balance.", JSON, billing_responses.Balance)}),
    _route(
        "get", "/v1/usage", "getUsage", "List your key's usage by day, model and user",
        {200: ("Newest first; by default the last 30 days.", JSON, billing_responses.UsageList)},
        parameters=(*_DAYS, query("group_by", "Separated by commas.", type="string", default=",".join(GROUPS))),
    ),
    _route(
        "get", "/v1/dashboard/billing/subscription", "getSubscription", "Retrieve your key's spending limit (for old clients)",
        {200: ("The limits.", JSON, billing_responses.Subscription)},
    ),
    _route(
        "get", "/v1/dashboard/billing/usage", "getBillingUsage", "Retrieve your key's spending in cents (for old clients)",
        {200: ("The sum of these days; without days, of all time.", JSON, billing_responses.BillingUsage)}, parameters=_DAYS,
    ),
    _route(
        "get", "/v1/dashboard/billing/credit_grants", "getCreditGrants", "Retrieve your key's grants and spending (for old clients)",
        {200: ("In US dollars.", JSON, billing_responses.CreditSummary)},
    ),
)  # fmt: skip
