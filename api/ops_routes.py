"""The addresses of operators."""

from __future__ import annotations

from functools import partial

from api import ops_schemas
from api.route import JSON, Route, query

PAGE = (
    query("limit", "Entries on a page.", type="integer", minimum=1, maximum=100, default=20),
    query("after", "The last id of the page before.", type="string"),
)
route = partial(Route, tag="operators", scheme="operator", refusals=(400, 401, 403, 404, 503))

ROUTES: tuple[Route, ...] = (
    route("get", "/ops/audit", "listAudit", "What operators did", {200: ("One page.", JSON, ops_schemas.AuditList)}, parameters=PAGE),
)
