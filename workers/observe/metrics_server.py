"""HTTP server for /metrics and /healthz of a process that serves no other HTTP, on a port of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest, multiprocess

from models.access import client_address, wrong_tokens
from models.access.wrong_tokens import WrongTokens
from models.config.settings import settings
from models.platform.errors import ServingError, TooManyWrongTokens, Unauthorised


def serve(port: int, *, is_healthy: Callable[[], bool], counts: Path | None = None) -> ThreadingHTTPServer:
    """Starts the server in a thread. counts: folder with the metrics of several processes; None: metrics of this process."""
    wrong = WrongTokens()

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.path == "/healthz":
                status, body = (200, b"ok\n") if is_healthy() else (503, b"unhealthy\n")
                self._send(status, body, "text/plain")
            elif self.path != "/metrics":
                self._send(404, b"", "text/plain")
            elif refusal := check_token(wrong, str(self.client_address[0]), self.headers.get("Authorization") or ""):
                self._send(refusal.status, b"", "text/plain")
            else:
                self._send(200, render_metrics(counts), CONTENT_TYPE_LATEST)

        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing."""

        def _send(self, status: int, body: bytes, content_type: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer((settings().metrics_host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def render_metrics(counts: Path | None) -> bytes:
    """Returns all metrics in Prometheus' text format."""
    if counts is None:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(counts))  # type: ignore[no-untyped-call]  # untyped in part
    return generate_latest(registry)


def check_token(wrong: WrongTokens, peer: str, authorization: str) -> ServingError | None:
    """Returns the error for this Authorization header of this peer; None if it may read /metrics."""
    try:
        wrong_tokens.authenticate_for_metrics(wrong, client_address.bucket_name(peer, ""), authorization.removeprefix("Bearer "))
    except (Unauthorised, TooManyWrongTokens) as error:
        return error
    return None
