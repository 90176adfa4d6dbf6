"""The addresses of money: ours, and those that the OpenAI API once had."""

from __future__ import annotations

from functools import partial

from api.billing import responses as billing_responses
from api.openapi.route import JSON, Route, query
from models.billing.statement import GROUPS

_DAYS = (
    query("start_date", "The first day, in UTC.", type="string", format="date"),
    query("end_date", "The last day, in UTC; it is included.", type="string", format="date"),
)
_route = partial(Route, tag="money", refusals=(400, 401, 503))

ROUTES: tuple[Route, ...] = (
    _route("get", "/v1/balance", "getBalance", "What your key has left", {200: ("The balance.", JSON, billing_responses.Balance)}),
    _route(
        "get", "/v1/usage", "getUsage", "What your key used, by day, model and user",
        {200: ("Newest first; of the last 30 days where none are named.", JSON, billing_responses.UsageList)},
        parameters=(*_DAYS, query("group_by", "With commas between.", type="string", default=",".join(GROUPS))),
    ),
    _route(
        "get", "/v1/dashboard/billing/subscription", "getSubscription", "What your key may spend in all (for old clients)",
        {200: ("Its limits.", JSON, billing_responses.Subscription)},
    ),
    _route(
        "get", "/v1/dashboard/billing/usage", "getBillingUsage", "What your key spent, in cents (for old clients)",
        {200: ("The sum of these days; without days, of all.", JSON, billing_responses.BillingUsage)}, parameters=_DAYS,
    ),
    _route(
        "get", "/v1/dashboard/billing/credit_grants", "getCreditGrants", "What your key was given and spent (for old clients)",
        {200: ("In US dollars.", JSON, billing_responses.CreditSummary)},
    ),
)  # fmt: skip
