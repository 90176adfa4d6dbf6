"""Authorisation of /ops: a blueprint that authenticates the operator before each view, and a decorator with the role of a view.

A module creates its routes with `blueprint` and marks each view with `requires("read")` or `requires("write")`.
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
    """Marks a view for operators with this role. The role `write` includes `read`."""

    def mark(view: View) -> View:
        view.required_role = role  # type: ignore[attr-defined]
        return view

    return mark


def blueprint(name: str) -> Blueprint:
    """Routes under /ops. A view without a mark requires `write`."""
    routes = Blueprint(name, __name__, url_prefix="/ops")
    routes.before_request(_authorise)
    return routes


def act(reason: str | None = None) -> Act:
    """This request as an entry of the audit log."""
    return Act(operator=current_operator(), reason=reason, request_id=g.request_id)


def current_operator() -> Operator:
    """The authenticated operator of this request."""
    operator: Operator = g.operator
    return operator


def _authorise() -> None:
    g.operator = auth.authenticate_operator(request)
    view = current_app.view_functions[request.endpoint or ""]
    if g.operator.role != "write" and getattr(view, "required_role", "write") != "read":
        raise Forbidden
