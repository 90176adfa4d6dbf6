"""Downloads of images and attached files by signed link. The signature authorises; no key is needed until the link expires."""

from __future__ import annotations

import time
from urllib.parse import quote

from flask import Blueprint, Response, request
from werkzeug.exceptions import RequestedRangeNotSatisfiable

from api.http import errors
from api.http.send_timeout import limit_sending
from api.submit.image_stream import ImageReader
from models.content import artifacts
from models.database import db
from models.platform.errors import Invalid
from models.sessions import messages

routes = Blueprint("artifacts", __name__)

# Types that a browser may display inline. SVG is excluded: it is a document that may contain scripts.
INLINE_TYPES = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif"}
DOWNLOAD_TYPES = {"image/svg+xml": "svg"}


class OutOfRange(Invalid):
    """The file does not have these bytes. `Content-Range` gives its size."""

    code = "range_not_satisfiable"
    status = 416


@routes.get("/artifacts/<name>")
def fetch(name: str) -> Response:
    """Returns the file or the requested byte range; 404 for a wrong or expired link."""
    expires, signature = request.args.get("expires", ""), request.args.get("signature", "")
    limit_sending(request)
    if name.startswith("img_"):
        return _fetch_turn_image(name, expires=expires, signature=signature)
    with db.begin() as session:
        artifact = artifacts.by_signed_url(session, name, expires=expires, signature=signature, now=time.time())
    headers = _headers(name, artifact.content_type, filename=artifact.name)
    response = Response(ImageReader(artifact.id, size=artifact.size), content_type=artifact.content_type, headers=headers)
    response.content_length = artifact.size
    response.set_etag(artifacts.public_id(artifact.id))
    try:
        response.make_conditional(request, accept_ranges=True, complete_length=artifact.size if _is_ranged(artifact.size) else None)
    except RequestedRangeNotSatisfiable:
        response = errors.error_response(OutOfRange())
        response.headers["Content-Range"] = f"bytes */{artifact.size}"
    return response


def _fetch_turn_image(name: str, *, expires: str, signature: str) -> Response:
    """Returns an image of the user message of a session's turn."""
    artifacts.check_signature(name, expires=expires, signature=signature, now=time.time())
    with db.begin() as session:
        content = messages.image_bytes(session, name)
    content_type = artifacts.sniff_type(content)
    response = Response(content, content_type=content_type, headers=_headers(name, content_type))
    response.set_etag(name)
    response.make_conditional(request)
    return response


def _is_ranged(size: int) -> bool:
    """Returns whether the response is one byte range.

    The whole file is returned instead when the header is malformed, names several ranges, or names a suffix longer than the file
    (RFC 9110).
    """
    header = request.range
    return header is not None and header.units == "bytes" and len(header.ranges) == 1 and header.ranges[0][0] >= -size


def _headers(name: str, content_type: str, *, filename: str | None = None) -> dict[str, str]:
    extension = INLINE_TYPES.get(content_type) or DOWNLOAD_TYPES.get(content_type, "bin")
    disposition = "inline" if content_type in INLINE_TYPES else "attachment"
    parameter = f"filename*=UTF-8''{quote(filename, safe='')}" if filename else f'filename="{name}.{extension}"'
    return {
        "Content-Disposition": f"{disposition}; {parameter}",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "X-Content-Type-Options": "nosniff",
        # Shared caches may not store it, and a private cache must revalidate: the link may have expired.
        "Cache-Control": "private, no-cache",
    }
