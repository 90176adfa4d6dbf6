"""The billing routes that the OpenAI API once had, as the programs that still ask for them read them."""

from __future__ import annotations

from flask import Blueprint, Response, request

from api.access import auth
from api.billing import date_range
from api.http import render
from models.billing import statement
from models.billing.money import MICRO, usd
from models.billing.statement import Standing
from models.database import db

routes = Blueprint("dashboard", __name__)

# What a key without a budget is said to have: these programs know no "as much as you like".
ENDLESS_USD = 100_000_000
# The first second of 2100: keys here do not run out.
NEVER = 4_102_444_800
MICROUSD_PER_CENT = 10_000


@routes.get("/dashboard/billing/subscription")
def subscription() -> Response:
    """How much the key may spend in all."""
    limit = usd(total(_standing()))
    return render.answer(
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
    """What was spent in these days, in cents; without days, ever."""
    caller = auth.caller(request)
    since, until = date_range.read()
    with db.begin() as session:
        spent = statement.spent_microusd(session, caller.id, since=since, until=until)
    return render.answer({"object": "list", "total_usage": spent / MICROUSD_PER_CENT})


@routes.get("/dashboard/billing/credit_grants")
def credit_grants() -> Response:
    """What the key was given, what it spent, and the difference."""
    now = _standing()
    given = total(now)
    return render.answer(
        {
            "object": "credit_summary",
            "total_granted": usd(given),
            "total_used": usd(now.spent),
            "total_available": usd(given - now.spent),
            "grants": {"object": "list", "data": []},
        }
    )


def _standing() -> Standing:
    caller = auth.caller(request)
    with db.begin() as session:
        return statement.standing(session, caller.id, caller.kind)


def total(now: Standing) -> int:
    """What the key may spend in all, in micro-USD."""
    return now.given if now.has_budget else ENDLESS_USD * MICRO
