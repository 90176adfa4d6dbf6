"""Whether there are enough settings to serve."""

from __future__ import annotations

from pydantic import ValidationError

from models.config.setting_errors import explain
from models.config.settings import Settings, settings


class NotConfigured(Exception):
    """The API cannot start as configured. The message says which setting to change."""


def check_settings() -> Settings:
    """The settings, when there is enough of them to serve. Raises NotConfigured."""
    try:
        found = settings()
    except ValidationError as error:
        raise NotConfigured(explain(error)) from None
    wanted = {
        "NOWSERVING_DATABASE_URL": found.database_url,
        "NOWSERVING_REDIS_URL": found.redis_url,
        "NOWSERVING_SECRET_KEYS": found.secret_keys,
    }
    missing = [name for name, value in wanted.items() if not value]
    if missing:
        raise NotConfigured(f"set {', '.join(missing)}, or use `nowserving up`, which brings its own servers")
    return found
