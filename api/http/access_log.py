"""One line in the log for each request, when its answer has gone out: what was asked, what came of it, how long it took.

Never the address as it was sent, which may hold a signature; never a header or a body. Without Flask: gunicorn's own module has it too.
"""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)

ROUTE = "nowserving.route"
# Asked every few seconds by whoever watches over the server.
WATCHED = frozenset({"/healthz", "/readyz", "/healthz/deep", "/metrics"})


def log_request(environ: dict[str, Any], *, status: int | None, sent_bytes: int, took_s: float) -> None:
    """The line. environ: of WSGI, with the route's template under ROUTE where there is such a route; status None: it got no answer."""
    route = environ.get(ROUTE)
    level = logging.DEBUG if route in WATCHED else logging.INFO
    log.log(
        level, "request",
        extra={
            "method": environ.get("REQUEST_METHOD"), "route": route, "status": status, "ms": round(took_s * 1000, 1), "bytes": sent_bytes,
        },
    )  # fmt: skip
