"""The route of the audit log: `GET /ops/audit`, newest entry first."""

from __future__ import annotations

import re

from flask import Response

from api.access import operator_auth
from api.http import paging
from models.access import audit_log
from models.database import db
from models.platform.errors import Invalid

routes = operator_auth.blueprint("audit")


@routes.get("/audit")
@operator_auth.requires("read")
def list_entries() -> Response:
    """Lists the entries of the audit log."""
    limit, before = paging.parse_limit(), paging.parse_after(_entry_id)
    with db.begin() as session:
        rows = audit_log.list_entries(session, limit=limit, before=before)
    return paging.list_response([audit_log.entry_view(row) for row in rows[:limit]], has_more=len(rows) > limit)


def _entry_id(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise Invalid("`after` is the id of an entry.", param="after")
    return int(text)
