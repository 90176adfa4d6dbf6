"""The operators' page at /ops/: files that ask the routes beside them, and nobody else, for everything they show."""

from __future__ import annotations

from pathlib import Path

from flask import Blueprint, Response, redirect, request, send_from_directory
from werkzeug.wrappers import Response as AnyResponse

from models.platform.errors import NotFound

routes = Blueprint("ops_page", __name__)

PAGES = Path(__file__).parents[1] / "pages"
KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
# Nothing inline, nothing from elsewhere, no frame around it: what an upstream's words could slip in would not run.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@routes.get("/ops")
def without_slash() -> AnyResponse:
    """The page's addresses are relative, so that it works behind any prefix: /ops/ it must be."""
    return redirect("ops/")


@routes.get("/ops/")
def page() -> Response:
    """The page. It holds no secret: its user types the token into it."""
    return _send("ops.html")


@routes.get("/ops/page/<name>")
def part(name: str) -> Response:
    """Its style and scripts."""
    if not (PAGES / name).is_file() or Path(name).suffix not in KINDS:
        raise NotFound("There is no such part of the page.", code="unknown_url")
    return _send(name)


def _send(name: str) -> Response:
    made = send_from_directory(PAGES, name, mimetype=KINDS[Path(name).suffix], conditional=True)
    made.headers["Content-Security-Policy"] = POLICY
    made.headers["X-Content-Type-Options"] = "nosniff"
    made.headers["Referrer-Policy"] = "no-referrer"
    # After an upgrade nobody runs half of the old page.
    made.headers["Cache-Control"] = "no-cache"
    made.make_conditional(request.environ)
    return made
