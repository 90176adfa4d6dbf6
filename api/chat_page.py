"""The chat page at `/`, as `make setup` built it into api/static; without it `/` leads to the docs.

It is a caller like any other: what it does, it does through the routes under /v1. Its files are named by their content, so they may be
kept for ever; only the document is asked for anew each time.
"""

from __future__ import annotations

from pathlib import Path

from flask import Blueprint, Response, redirect, request, send_from_directory
from werkzeug.wrappers import Response as AnyResponse

from api.access import visitors

routes = Blueprint("page", __name__)

BUILT = Path(__file__).parent / "static"
KEPT_S = 365 * 86_400
# Nothing inline, nothing from elsewhere. Pictures that are chosen are shown from data: and blob: before they are sent.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; font-src 'self';"
    " media-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
OWN_KEY = 'name="nowserving-key" content="own"'


@routes.get("/")
def home() -> AnyResponse:
    """The page. Where the operator has configured a key for it, whoever has no name yet is given one."""
    if not (BUILT / "index.html").is_file():
        return redirect("docs")
    # Read anew: the page may be built again under a server that runs.
    found = (BUILT / "index.html").read_text()
    made = Response(found, mimetype="text/html")
    if (name := visitors.set_cookie(request, made)) is not None:
        made.set_data(found.replace(OWN_KEY, f'name="nowserving-key" content="shared {name}"'))
        made.headers["Cache-Control"] = "no-store"
    else:
        made.headers["Cache-Control"] = "no-cache"
        made.add_etag()
        made.make_conditional(request)
    return _guarded(made)


@routes.get("/assets/<name>")
def asset(name: str) -> Response:
    """A file of the page, compressed where the browser takes that."""
    made = _file(f"assets/{name}")
    if made.status_code in (200, 304):
        made.headers["Cache-Control"] = f"public, max-age={KEPT_S}, immutable"
    return made


@routes.get("/icon.svg")
def icon() -> Response:
    """The page's icon."""
    return _file("icon.svg")


def _file(path: str) -> Response:
    is_packed = "gzip" in request.headers.get("Accept-Encoding", "") and (BUILT / f"{path}.gz").is_file()
    kind = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}.get(Path(path).suffix)
    made = send_from_directory(BUILT, f"{path}.gz" if is_packed else path, mimetype=kind, max_age=3_600)
    if is_packed:
        made.headers["Content-Encoding"] = "gzip"
    made.vary.add("Accept-Encoding")
    return _guarded(made)


def _guarded(made: Response) -> Response:
    made.headers["Content-Security-Policy"] = POLICY
    made.headers["X-Content-Type-Options"] = "nosniff"
    made.headers["Referrer-Policy"] = "no-referrer"
    made.headers["Permissions-Policy"] = "camera=(), geolocation=(), microphone=(self)"
    made.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    return made
