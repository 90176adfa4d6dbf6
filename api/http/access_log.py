"""The access log: one line for each request after its response was sent.

It never holds the URL, which may hold a signature, nor a header or a body. No Flask import: gunicorn's master loads this module.
"""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)

ROUTE = "nowserving.route"
# Monitoring calls these routes every few seconds: the log level of their lines is DEBUG.
MONITORING_ROUTES = frozenset({"/healthz", "/readyz", "/healthz/deep", "/metrics"})


def log_request(environ: dict[str, Any], *, status: int | None, sent_bytes: int, took_s: float) -> None:
    """Logs a request. environ: of WSGI, with the template of the route under ROUTE, if one matched. status None: no response was sent."""
    route = environ.get(ROUTE)
    level = logging.DEBUG if route in MONITORING_ROUTES else logging.INFO
    log.log(
        level, "request",
        extra={
            "method": environ.get("REQUEST_METHOD"), "route": route, "status": status, "ms": round(took_s * 1000, 1), "bytes": sent_bytes,
        },
    )  # fmt: skip
