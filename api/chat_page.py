"""The chat page at `/`, as `make setup` builds it into api/static; without it `/` redirects to the docs.

The page only uses the routes under /v1. The names of its files hold a digest of their content, so browsers may cache them for a year;
only the HTML document is revalidated each time.
"""

from __future__ import annotations

from pathlib import Path

from flask import Blueprint, Response, redirect, request, send_from_directory
from werkzeug.wrappers import Response as AnyResponse

from api.access import visitors

routes = Blueprint("page", __name__)

BUILT = Path(__file__).parent / "static"
ASSET_TTL_S = 365 * 86_400
# No inline code and no other origins. The page previews chosen images from data: and blob: URLs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; font-src 'self';"
    " media-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
OWN_KEY = 'name="nowserving-key" content="own"'


@routes.get("/")
def home() -> AnyResponse:
    """The page. With a page key of the operator it sets the visitor cookie."""
    if not (BUILT / "index.html").is_file():
        return redirect("docs")
    # Read for each request: the page may be built again while the server runs.
    html = (BUILT / "index.html").read_text()
    response = Response(html, mimetype="text/html")
    if (name := visitors.set_cookie(request, response)) is not None:
        response.set_data(html.replace(OWN_KEY, f'name="nowserving-key" content="shared {name}"'))
        response.headers["Cache-Control"] = "no-store"
    else:
        response.headers["Cache-Control"] = "no-cache"
        response.add_etag()
        response.make_conditional(request)
    return _with_security_headers(response)


@routes.get("/assets/<name>")
def asset(name: str) -> Response:
    """A file of the page, compressed with gzip if the browser accepts it."""
    response = _file(f"assets/{name}")
    if response.status_code in (200, 304):
        response.headers["Cache-Control"] = f"public, max-age={ASSET_TTL_S}, immutable"
    return response


@routes.get("/icon.svg")
def icon() -> Response:
    """The icon of the page."""
    return _file("icon.svg")


def _file(path: str) -> Response:
    is_compressed = "gzip" in request.headers.get("Accept-Encoding", "") and (BUILT / f"{path}.gz").is_file()
    kind = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}.get(Path(path).suffix)
    response = send_from_directory(BUILT, f"{path}.gz" if is_compressed else path, mimetype=kind, max_age=3_600)
    if is_compressed:
        response.headers["Content-Encoding"] = "gzip"
    response.vary.add("Accept-Encoding")
    return _with_security_headers(response)


def _with_security_headers(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Permissions-Policy"] = "camera=(), geolocation=(), microphone=(self)"
    response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    return response
