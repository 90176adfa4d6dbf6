"""The former billing routes of the OpenAI API, for programs that still call them."""

from __future__ import annotations

from flask import Blueprint, Response, request

from api.access import auth
from api.billing import date_range
from api.http import render
from models.billing import statement
from models.billing.money import MICRO_PER_USD, to_usd
from models.billing.statement import Statement
from models.database import db

routes = Blueprint("dashboard", __name__)

# Reported for a key without a budget: these programs know no unlimited keys.
UNLIMITED_USD = 100_000_000
# The first second of 2100: keys do not expire here.
NEVER = 4_102_444_800
MICROUSD_PER_CENT = 10_000


@routes.get("/dashboard/billing/subscription")
def subscription() -> Response:
    """Returns the key's total spending limit."""
    limit = to_usd(total_microusd(_standing()))
    return render.json_response(
        {
            "object": "billing_subscription",
            "has_payment_method": True,
            "soft_limit_usd": limit,
            "hard_limit_usd": limit,
            "system_hard_limit_usd": limit,
            "access_until": NEVER,
        }
    )


@routes.get("/dashboard/billing/usage")
def usage() -> Response:
    """Returns the spending of these days in cents; without days, of all time."""
    caller = auth.authenticate(request)
    since, until = date_range.read()
    with db.begin() as session:
        spent = statement.spent_microusd(session, caller.id, since=since, until=until)
    return render.json_response({"object": "list", "total_usage": spent / MICROUSD_PER_CENT})


@routes.get("/dashboard/billing/credit_grants")
def credit_grants() -> Response:
    """Returns grants, spending and the difference."""
    standing = _standing()
    granted = total_microusd(standing)
    return render.json_response(
        {
            "object": "credit_summary",
            "total_granted": to_usd(granted),
            "total_used": to_usd(standing.spent),
            "total_available": to_usd(granted - standing.spent),
            "grants": {"object": "list", "data": []},
        }
    )


def _standing() -> Statement:
    caller = auth.authenticate(request)
    with db.begin() as session:
        return statement.statement_of(session, caller.id, caller.kind)


def total_microusd(standing: Statement) -> int:
    """Returns the key's total spending limit in micro-USD."""
    return standing.given if standing.has_budget else UNLIMITED_USD * MICRO_PER_USD
