"""Parses `?start_date=` and `?end_date=`: whole days in UTC, both included."""

from __future__ import annotations

import re
from datetime import date

from flask import request

from models.platform.errors import Invalid

_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
# No calls were made before it; beyond it Postgres has days that Python cannot represent.
FIRST, LAST = date(2000, 1, 1), date(2100, 1, 1)


def read() -> tuple[date | None, date | None]:
    """Returns the first and the last day; None where the parameter is missing. Raises Invalid."""
    since, until = _day("start_date"), _day("end_date")
    if since is not None and until is not None and since > until:
        raise Invalid("`start_date` is after `end_date`.", param="start_date")
    return since, until


def _day(name: str) -> date | None:
    text = request.args.get(name)
    if not text:
        return None
    try:
        day = date.fromisoformat(text) if _DATE.fullmatch(text) else None
    except ValueError:
        day = None
    if day is None or not FIRST <= day <= LAST:
        raise Invalid(f"`{name}` is a day between {FIRST} and {LAST}, written as 2026-11-25.", param=name)
    return day
