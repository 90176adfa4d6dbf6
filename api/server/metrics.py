"""/metrics of the API: the metrics of all its processes together, for operators (operators.opens_metrics)."""

from __future__ import annotations

from pathlib import Path

from flask import Blueprint, Flask, Response, request
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest, multiprocess

from api.access import auth
from api.access.signup_limit import client_address_of
from models.access import wrong_tokens
from models.config.settings import settings
from models.telemetry import metrics

routes = Blueprint("metrics", __name__)


def register(app: Flask) -> None:
    """Counts every response of the application. The gunicorn worker counts its own."""
    app.extensions["requests_total"] = metrics.requests

    @app.after_request
    def _count(response: Response) -> Response:
        metrics.requests.labels(request.method if request.url_rule else "other", str(response.status_code)).inc()
        return response


@routes.get("/metrics")
def show() -> Response:
    """The metrics in the text format of Prometheus."""
    wrong_tokens.authenticate_for_metrics(auth.wrong_tokens(), client_address_of(request), auth.bearer_token(request))
    registry, folder = REGISTRY, settings().metrics_folder
    if folder is not None:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, str(Path(folder)))  # type: ignore[no-untyped-call]  # untyped in part
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)
