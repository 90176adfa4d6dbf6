"""The startup check of required settings."""

from __future__ import annotations

from pydantic import ValidationError

from models.config.setting_errors import explain
from models.config.settings import Settings, settings


class NotConfigured(Exception):
    """The API cannot start as configured. The message says which setting to change."""


def check_settings() -> Settings:
    """The settings. Raises NotConfigured when a required one is invalid or missing."""
    try:
        configured = settings()
    except ValidationError as error:
        raise NotConfigured(explain(error)) from None
    required = {
        "NOWSERVING_DATABASE_URL": configured.database_url,
        "NOWSERVING_REDIS_URL": configured.redis_url,
        "NOWSERVING_SECRET_KEYS": configured.secret_keys,
    }
    missing = [name for name, value in required.items() if not value]
    if missing:
        raise NotConfigured(f"set {', '.join(missing)}, or use `nowserving up`, which brings its own servers")
    return configured
