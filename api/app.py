"""The Flask application."""

from __future__ import annotations

import time

from flask import Flask

from api import (
    artifacts,
    attachments,
    balance,
    cors,
    dashboard,
    deliveries,
    docs,
    errors,
    events,
    health,
    intake,
    jobs,
    levers,
    metrics,
    openai,
    ops_audit,
    ops_page,
    page,
    pro,
    relay,
    sessions,
    sights,
    stored_completions,
    webhooks,
)
from api.auth import Callers
from api.waiting import hall
from models.wrong_tokens import WrongTokens

# People paste base URLs with and without /v1, and some programs then double it: the routes of the OpenAI API are at all three.
PREFIXES = {"": "/v1", "_bare": "", "_doubled": "/v1/v1"}


def create_app() -> Flask:
    """A new application; what it remembers of its callers is its own."""
    app = Flask(__name__, static_folder=None)
    # An address is right or it is unknown: a redirect would lose the body and the key of a POST.
    app.url_map.strict_slashes = True
    app.url_map.merge_slashes = False
    app.extensions["wrong_tokens"] = WrongTokens()
    app.extensions["callers"] = Callers(wrong=app.extensions["wrong_tokens"])
    app.extensions["hall"] = hall
    app.extensions["first_reports"] = health.Latch(health.PARTS, now=time.monotonic())
    cors.register(app)
    metrics.register(app)
    errors.register(app)
    intake.register(app)
    for routes in (
        jobs.routes, events.routes, relay.routes, artifacts.routes, deliveries.routes, balance.routes, sessions.routes, attachments.routes,
    ):  # fmt: skip
        app.register_blueprint(routes, url_prefix="/v1")
    for routes in (openai.routes, stored_completions.routes, webhooks.routes, dashboard.routes):
        for suffix, prefix in PREFIXES.items():
            app.register_blueprint(routes, url_prefix=prefix, name=routes.name + suffix)
    for routes in (
        ops_audit.routes, levers.routes, ops_page.routes, sights.routes, pro.routes, health.routes, metrics.routes, docs.routes,
        page.routes,
    ):  # fmt: skip
        app.register_blueprint(routes)
    return app
