"""The Flask application."""

from __future__ import annotations

import time
from functools import partial

from flask import Flask

from api import chat_page
from api.access.auth import KeyCache
from api.billing import balance, openai_dashboard
from api.document import docs_page
from api.http import body_budget, errors
from api.jobs import artifact_views, event_stream
from api.jobs import views as job_views
from api.legacy import pro
from api.openai import azure, model_lists, stream_response
from api.openai import views as openai_views
from api.ops import action_views, audit_views, list_views
from api.ops import page as ops_page
from api.server import cors, health, host_check, metrics, url_rewriting
from api.server.heartbeat import Heartbeat
from api.sessions import attachments
from api.sessions import views as session_views
from api.stored import views as stored_views
from api.waiting.registry import waiter_registry
from api.webhooks import deliveries
from api.webhooks import views as webhook_views
from models.access.wrong_tokens import WrongTokens


def create_app() -> Flask:
    """A new application, with caches of its own."""
    app = Flask(__name__, static_folder=None)
    # No redirects: they would lose the body and the key of a POST. api/server/url_rewriting.py handles other spellings of an address.
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    app.extensions["waiter_registry"] = waiter_registry
    reset_caches(app)
    metrics.register(app)
    errors.register(app)
    host_check.register(app)
    cors.register(app)
    body_budget.register(app)
    for routes in (
        openai_views.routes, model_lists.routes, job_views.routes, event_stream.routes, stream_response.routes, artifact_views.routes,
        webhook_views.routes, deliveries.routes,
        balance.routes, openai_dashboard.routes, session_views.routes, attachments.routes, stored_views.routes,
    ):  # fmt: skip
        app.register_blueprint(routes, url_prefix="/v1")
    app.register_blueprint(azure.routes, url_prefix="/openai")
    for routes in (
        audit_views.routes, action_views.routes, ops_page.routes, list_views.routes, pro.routes, health.routes, metrics.routes,
        docs_page.routes,
        chat_page.routes,
    ):  # fmt: skip
        app.register_blueprint(routes)
    url_rewriting.register(app)
    return app


def reset_caches(app: Flask) -> None:
    """Clears the caches of callers and the state of health checks, as in a new application."""
    app.extensions["wrong_tokens"] = WrongTokens()
    app.extensions["key_cache"] = KeyCache()
    latch = app.extensions["first_reports"] = health.Latch(health.PARTS, now=time.monotonic())
    app.extensions["heartbeat"] = Heartbeat(missing=partial(health.missing, latch))
