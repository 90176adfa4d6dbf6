"""What a key has left, and what it used: by day, model and user."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from flask import Blueprint, Response, request

from api.access import auth, visitors
from api.billing import date_range
from api.http import render
from models.billing import statement
from models.billing.money import usd
from models.billing.statement import GROUPS
from models.database import db
from models.platform.errors import Invalid
from models.platform.wire import JsonObject

routes = Blueprint("balance", __name__)

DAYS, DAYS_MOST = 30, 366
ROWS_MOST = 1_000


@routes.get("/balance")
def balance() -> Response:
    """What the key was given, what it spent, what its open jobs reserve, and what is left; of a visitor, only what it spent itself."""
    caller, visitor_name = auth.caller(request), visitors.name_of(request)
    with db.begin() as session:
        now = statement.standing(session, caller.id, caller.kind)
        spent = now if visitor_name is None else statement.of_user(session, caller.id, visitor_name)
    amounts = {"balance_usd": now.balance, "reserved_usd": now.reserved, "granted_usd": now.granted, "corrected_usd": now.corrected}
    return render.answer(
        {
            "object": "balance",
            "has_budget": now.has_budget,
            "available_usd": usd(now.available) if now.has_budget else None,
            **{name: usd(amount) if visitor_name is None else None for name, amount in amounts.items()},
            "spent_usd": usd(spent.spent),
            "unknown_usd": usd(spent.unknown),
            "unpriced_calls": spent.unpriced_calls,
        }
    )


@routes.get("/usage")
def usage() -> Response:
    """What was used, newest first: of the last 30 days where none are named."""
    caller, groups = auth.caller(request), _groups()
    since, until = date_range.read()
    until = until or max(datetime.now(UTC).date(), since or date_range.FIRST)
    since = since or until - timedelta(days=DAYS - 1)
    if (until - since).days >= DAYS_MOST:
        raise Invalid(f"At most {DAYS_MOST} days at a time.", param="start_date")
    with db.begin() as session:
        # A visitor sees its own.
        rows = statement.report(session, caller.id, since=since, until=until, by=groups, most=ROWS_MOST + 1, user=visitors.name_of(request))
    shown = [_show(row) for row in rows[:ROWS_MOST]]
    said = {"start_date": since.isoformat(), "end_date": until.isoformat(), "group_by": groups}
    return render.answer({"object": "list", **said, "data": shown, "has_more": len(rows) > ROWS_MOST})


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
        "cost_usd": usd(row.cost),
        "unknown_usd": usd(row.unknown),
        "unpriced_calls": row.unpriced_calls,
    }


def _groups() -> list[str]:
    said = request.args.get("group_by", ",".join(GROUPS))
    wanted = [one.strip() for one in said.split(",")] if said else []
    if not set(wanted) <= set(GROUPS):
        raise Invalid(f"`group_by` is one or more of {', '.join(GROUPS)}, with commas between.", param="group_by")
    return [one for one in GROUPS if one in wanted]
