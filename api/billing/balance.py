"""The balance and usage routes: what a key has left, and its usage by day, model and user."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Blueprint, Response, request

from api.access import auth, visitors
from api.billing import date_range
from api.http import render
from models.billing import statement
from models.billing.money import to_usd
from models.billing.statement import GROUPS
from models.database import db
from models.platform.errors import Invalid
from models.platform.wire import JsonObject

routes = Blueprint("balance", __name__)

DEFAULT_DAYS, MAX_DAYS = 30, 366
MAX_ROWS = 1_000


@routes.get("/balance")
def balance() -> Response:
    """Returns the key's grants, spending, reservations and balance; for a visitor only the visitor's own spending."""
    caller, visitor_name = auth.authenticate(request), visitors.name_of(request)
    with db.begin() as session:
        standing = statement.statement_of(session, caller.id, caller.kind)
        spent = standing if visitor_name is None else statement.spending_of_user(session, caller.id, visitor_name)
    amounts = {
        "balance_usd": standing.balance, "reserved_usd": standing.reserved, "granted_usd": standing.granted,
        "corrected_usd": standing.corrected,
    }  # fmt: skip
    return render.json_response(
        {
            "object": "balance",
            "has_budget": standing.has_budget,
            "available_usd": to_usd(standing.available) if standing.has_budget else None,
            **{name: to_usd(amount) if visitor_name is None else None for name, amount in amounts.items()},
            "spent_usd": to_usd(spent.spent),
            "unknown_usd": to_usd(spent.unknown),
            "unpriced_calls": spent.unpriced_calls,
        }
    )


@routes.get("/usage")
def usage() -> Response:
    """Returns usage rows, newest first; by default of the last 30 days."""
    caller, groups = auth.authenticate(request), _groups()
    since, until = date_range.read()
    until = until or max(datetime.now(UTC).date(), since or date_range.FIRST)
    since = since or until - timedelta(days=DEFAULT_DAYS - 1)
    if (until - since).days >= MAX_DAYS:
        raise Invalid(f"At most {MAX_DAYS} days at a time.", param="start_date")
    with db.begin() as session:
        # Visitors see only their own usage.
        user = visitors.name_of(request)
        rows = statement.usage_report(session, caller.id, since=since, until=until, by=groups, limit=MAX_ROWS + 1, user=user)
    return render.json_response(
        {
            "object": "list",
            "start_date": since.isoformat(),
            "end_date": until.isoformat(),
            "group_by": groups,
            "data": [_show(row) for row in rows[:MAX_ROWS]],
            "has_more": len(rows) > MAX_ROWS,
        }
    )


def _show(row: Any) -> JsonObject:
    return {
        "object": "usage",
        "day": row.day,
        "model": row.model,
        "user": row.user,
        "calls": row.calls,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "images": row.images,
        "estimated_calls": row.estimated_calls,
        "cost_usd": to_usd(row.cost),
        "unknown_usd": to_usd(row.unknown),
        "unpriced_calls": row.unpriced_calls,
    }


def _groups() -> list[str]:
    text = request.args.get("group_by", ",".join(GROUPS))
    names = [name.strip() for name in text.split(",")] if text else []
    if not set(names) <= set(GROUPS):
        raise Invalid(f"`group_by` is one or more of {', '.join(GROUPS)}, separated by commas.", param="group_by")
    return [group for group in GROUPS if group in names]
