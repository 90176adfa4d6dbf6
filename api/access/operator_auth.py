"""Who may use /ops: every route there says which role it needs, and nothing is done before the token was looked at.

A module makes its routes with `blueprint`, and marks each view with `needs("read")` or `needs("write")`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from flask import Blueprint, current_app, g, request

from api.access import auth
from models.access.audit_log import Act
from models.access.operators import Operator, Role
from models.platform.errors import Forbidden

View = TypeVar("View", bound=Callable[..., Any])


def requires(role: Role) -> Callable[[View], View]:
    """The view is for operators with this role; `write` may read too."""

    def mark(view: View) -> View:
        view.needed_role = role  # type: ignore[attr-defined]
        return view

    return mark


def blueprint(name: str) -> Blueprint:
    """Routes under /ops. One that does not say whom it is for needs `write`."""
    made = Blueprint(name, __name__, url_prefix="/ops")
    made.before_request(_admit)
    return made


def act(reason: str | None = None) -> Act:
    """This request, for the audit log."""
    return Act(operator=current_operator(), reason=reason, request_id=g.request_id)


def current_operator() -> Operator:
    """The operator that makes this request."""
    found: Operator = g.operator
    return found


def _admit() -> None:
    g.operator = auth.authenticate_operator(request)
    view = current_app.view_functions[request.endpoint or ""]
    if g.operator.role != "write" and getattr(view, "needed_role", "write") != "read":
        raise Forbidden
