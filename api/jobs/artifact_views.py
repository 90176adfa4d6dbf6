"""Pictures and attached files by their signed links: no key is asked for, the link is the key until it expires."""

from __future__ import annotations

import time
from urllib.parse import quote

from flask import Blueprint, Response, request
from werkzeug.exceptions import RequestedRangeNotSatisfiable

from api.http import errors
from api.http.send_timeout import limit_sending
from api.submit.image_stream import Content
from models.content import artifacts
from models.database import db
from models.platform.errors import Invalid
from models.sessions import messages

routes = Blueprint("artifacts", __name__)

# What a browser may show by itself. Not SVG: it is a document that may hold scripts.
SHOWN = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp", "image/gif": "gif"}
SAVED = {"image/svg+xml": "svg"}


class OutOfRange(Invalid):
    """The picture does not have these bytes. `Content-Range` says how many it has."""

    code = "range_not_satisfiable"
    status = 416


@routes.get("/artifacts/<name>")
def fetch(name: str) -> Response:
    """The picture's bytes, or the range of them that was asked for; 404 for a link that is wrong or has expired."""
    expires, signature = request.args.get("expires", ""), request.args.get("signature", "")
    limit_sending(request)
    if name.startswith("img_"):
        return _asked(name, expires=expires, signature=signature)
    with db.begin() as session:
        one = artifacts.find(session, name, expires=expires, signature=signature, now=time.time())
    headers = _headers(name, one.content_type, filename=one.name)
    made = Response(Content(one.id, size=one.size), content_type=one.content_type, headers=headers)
    made.content_length = one.size
    made.set_etag(artifacts.public_id(one.id))
    try:
        made.make_conditional(request, accept_ranges=True, complete_length=one.size if _is_ranged(one.size) else None)
    except RequestedRangeNotSatisfiable:
        made = errors.answer(OutOfRange())
        made.headers["Content-Range"] = f"bytes */{one.size}"
    return made


def _asked(name: str, *, expires: str, signature: str) -> Response:
    """A picture that stands in the question of a session's turn."""
    artifacts.expect_signed(name, expires=expires, signature=signature, now=time.time())
    with db.begin() as session:
        content = messages.picture(session, name)
    content_type = artifacts.sniff(content)
    made = Response(content, content_type=content_type, headers=_headers(name, content_type))
    made.set_etag(name)
    made.make_conditional(request)
    return made


def _is_ranged(size: int) -> bool:
    """Whether a part is asked for. Not where the header means nothing, names several parts, or a longer end than there is: then the
    whole is the answer, as RFC 9110 has it."""
    wanted = request.range
    return wanted is not None and wanted.units == "bytes" and len(wanted.ranges) == 1 and wanted.ranges[0][0] >= -size


def _headers(name: str, content_type: str, *, filename: str | None = None) -> dict[str, str]:
    ending = SHOWN.get(content_type) or SAVED.get(content_type, "bin")
    how = "inline" if content_type in SHOWN else "attachment"
    named = f"filename*=UTF-8''{quote(filename, safe='')}" if filename else f'filename="{name}.{ending}"'
    return {
        "Content-Disposition": f"{how}; {named}",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "X-Content-Type-Options": "nosniff",
        # Kept by the one who fetched it, if at all, and never shown again without asking: the link may have expired.
        "Cache-Control": "private, no-cache",
    }
