"""Pictures by their signed links: no key is asked for, the link is the key until it expires."""

from __future__ import annotations

import time

from flask import Blueprint, Response, request

from models import artifact, db

routes = Blueprint("artifacts", __name__)


@routes.get("/artifacts/<name>")
def fetch(name: str) -> Response:
    """The picture's bytes; 404 for a link that is wrong or has expired."""
    expires, signature = request.args.get("expires", ""), request.args.get("signature", "")
    with db.begin() as session:
        row = artifact.fetch(session, name, expires=expires, signature=signature, now=time.time())
    made = Response(bytes(row.content), content_type=row.content_type)
    made.headers["Content-Disposition"] = "inline" if row.content_type.startswith("image/") else "attachment"
    made.headers["Content-Security-Policy"] = "default-src 'none'; sandbox"
    made.headers["X-Content-Type-Options"] = "nosniff"
    made.headers["Cache-Control"] = "private, no-store"
    return made
