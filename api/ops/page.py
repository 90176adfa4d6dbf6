"""Serves the operators' page at /ops/: static files that load all data from the /ops routes of this server."""

from __future__ import annotations

from pathlib import Path

from flask import Blueprint, Response, redirect, request, send_from_directory
from werkzeug.wrappers import Response as AnyResponse

from models.platform.errors import NotFound

routes = Blueprint("ops_page", __name__)

PAGES = Path(__file__).parents[1] / "pages"
KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
# No inline code, no other origins, no frames: markup in an upstream's error message cannot run.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@routes.get("/ops")
def without_slash() -> AnyResponse:
    """Redirects to /ops/: the page's links are relative, so that it works behind any prefix."""
    return redirect("ops/")


@routes.get("/ops/")
def page() -> Response:
    """Returns the page. It contains no secret: the operator enters the token."""
    return _send("ops.html")


@routes.get("/ops/page/<name>")
def asset(name: str) -> Response:
    """Returns a style sheet or script of the page."""
    if not (PAGES / name).is_file() or Path(name).suffix not in KINDS:
        raise NotFound("The page has no such file.", code="unknown_url")
    return _send(name)


def _send(name: str) -> Response:
    response = send_from_directory(PAGES, name, mimetype=KINDS[Path(name).suffix], conditional=True)
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    # After an upgrade no browser may mix files of the old and the new page.
    response.headers["Cache-Control"] = "no-cache"
    response.make_conditional(request.environ)
    return response
