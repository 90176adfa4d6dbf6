"""`python -m workers.flower`: Flower on loopback behind a password or a login, and behind NOWSERVING_FLOWER_URL_PREFIX where that is set.

It only shows, unless NOWSERVING_FLOWER_CONTROL lets its users cancel jobs. Its secrets go by environment, never by argv.
Its own settings for OAuth (FLOWER_AUTH, FLOWER_AUTH_PROVIDER, FLOWER_OAUTH2_…) are obeyed; what would open it is not.
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

TASKS_MOST = 5_000
OFFLINE_S = 300


def main() -> None:
    """Serves until told to stop. Exits with a message when neither a user and password nor a login are set."""
    logs.configure(settings_or_exit().log_level)
    configure()
    served = Flower(capp=app, options=options, **flower_settings, template_loader=handlers.loader(flower_settings["template_path"]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    served.start_http_server()
    try:
        served.start()
    except (KeyboardInterrupt, SystemExit):
        served.stop()


def configure() -> None:
    """Flower's options are ours, and its addresses too."""
    ours = settings()
    os.environ.pop("FLOWER_UNAUTHENTICATED_API", None)
    command.apply_env_options()
    auth = ours.flower_basic_auth.get_secret_value()
    if not options.auth and ":" not in auth:
        sys.exit("Set NOWSERVING_FLOWER_BASIC_AUTH=user:password; `nowserving up` makes one at random.")
    options.basic_auth = [auth] if auth else []
    options.address, options.port = ours.host, ours.flower_port
    options.url_prefix = ours.flower_url_prefix.strip("/") or None
    options.read_only = not ours.flower_control
    options.max_tasks, options.purge_offline_workers, options.persistent = TASKS_MOST, OFFLINE_S, False
    command.extract_settings()
    handlers.replace_handlers()


if __name__ == "__main__":
    main()
