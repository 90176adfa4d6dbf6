"""`python -m workers.flower`: runs Flower on loopback behind a password or an OAuth login, under NOWSERVING_FLOWER_URL_PREFIX if set.

Flower is read-only, unless NOWSERVING_FLOWER_CONTROL lets its users cancel jobs. Secrets come from the environment, never from argv.
Flower's own OAuth settings (FLOWER_AUTH, FLOWER_AUTH_PROVIDER, FLOWER_OAUTH2_…) apply; settings that would disable its login do not.
"""

from __future__ import annotations

import os
import signal
import sys

from flower import command
from flower.app import Flower
from flower.urls import settings as flower_settings
from tornado.options import options

from models.config.setting_errors import settings_or_exit
from models.config.settings import settings
from models.telemetry import logs
from workers.broker.celery_app import app
from workers.flower import handlers

MAX_TASKS = 5_000
OFFLINE_S = 300


def main() -> None:
    """Serves until SIGTERM. Exits with a message if neither a password nor a login is configured."""
    logs.configure(settings_or_exit().log_level)
    configure()
    flower = Flower(capp=app, options=options, **flower_settings, template_loader=handlers.loader(flower_settings["template_path"]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    flower.start_http_server()
    try:
        flower.start()
    except (KeyboardInterrupt, SystemExit):
        flower.stop()


def configure() -> None:
    """Sets Flower's options from our settings and replaces its handlers."""
    config = settings()
    os.environ.pop("FLOWER_UNAUTHENTICATED_API", None)
    command.apply_env_options()
    auth = config.flower_basic_auth.get_secret_value()
    if not options.auth and ":" not in auth:
        sys.exit("Set NOWSERVING_FLOWER_BASIC_AUTH=user:password; `nowserving up` makes one at random.")
    options.basic_auth = [auth] if auth else []
    options.address, options.port = config.host, config.flower_port
    options.url_prefix = config.flower_url_prefix.strip("/") or None
    options.read_only = not config.flower_control
    options.max_tasks, options.purge_offline_workers, options.persistent = MAX_TASKS, OFFLINE_S, False
    command.extract_settings()
    handlers.replace_handlers()


if __name__ == "__main__":
    main()
