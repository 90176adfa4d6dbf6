"""gunicorn's configuration: `gunicorn -c python:api.serve "api.app:create_app()"`, which is what `nowserving api` runs.

gevent, because half-sent headers and stalled readers stop the threaded worker (measured).
"""

from __future__ import annotations

import gc
import logging.config
import os
import resource
import threading
import time
from datetime import timedelta
from typing import Any

from gunicorn.glogging import Logger

from api.http import access_log
from api.server.startup_checks import NotConfigured, check_settings
from models.config.settings import settings
from models.platform import allocator
from models.telemetry import logs, metrics_folder, tracing

# The workers count together there. Set before prometheus_client is imported and the settings are read, which is not in the master.
COUNTS = metrics_folder.create()
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(COUNTS)

SPARE_CONNECTIONS = 1_000
SPARE_FILES = 200


def address() -> str:
    """Where to listen."""
    host = settings().host
    return f"{f'[{host}]' if ':' in host else host}:{settings().port}"


def connections() -> int:
    """How many a process may have open: for all who may wait in it and more who do not; fewer where it may not open so many files."""
    wanted = settings().max_waiting_per_process + SPARE_CONNECTIONS
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if most == resource.RLIM_INFINITY else max(1, min(wanted, most - SPARE_FILES))


class Log(Logger):  # type: ignore[misc]  # its base is Any
    """gunicorn's log, on the lines and behind the redaction of ours. Its line for each request is ours too (api/http/access_log.py)."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        logging.config.dictConfig(logs.config(settings().log_level))
        for own in (self.error_log, self.access_log):
            own.handlers.clear()
            own.propagate = True

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        access_log.log_request(environ, status=resp.status_code, sent_bytes=resp.sent, took_s=request_time.total_seconds())
        # What comes next on this connection is another matter.
        logs.bind()


logger_class = Log
bind = [address()]
workers = settings().api_processes
worker_class = "api.server.gunicorn_worker.Worker"
worker_connections = connections()
timeout = 30
graceful_timeout = 30
keepalive = 5
limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 8190
forwarded_allow_ips = ",".join(("127.0.0.1", "::1", *settings().trusted_proxies))
# Only who can write to this process's files could speak to it there; nobody has to.
control_socket_disable = True
loglevel = settings().log_level.lower()


def post_fork(server: Any, worker: Any) -> None:
    """gunicorn's hook: imports come next, and nothing of them is garbage; looking for some takes a third of their time."""
    gc.disable()


def child_exit(server: Any, worker: Any) -> None:
    """gunicorn's hook: nobody waits in a process that is gone."""
    for file in COUNTS.glob(f"gauge_live*_{worker.pid}.db"):
        file.unlink(missing_ok=True)


def worker_exit(server: Any, worker: Any) -> None:
    """gunicorn's hook, in the worker itself: what was told of its requests is sent."""
    tracing.stop()


def on_exit(server: Any) -> None:
    """gunicorn's hook: what was counted goes with the processes."""
    metrics_folder.remove(COUNTS)


def on_starting(server: Any) -> None:
    """gunicorn's hook: it does not start half-configured."""
    try:
        check_settings()
    except NotConfigured as error:
        raise SystemExit(f"error: {error}") from None
    # The usual soft limit of 1,024 is for programs that use select(), which nothing here does.
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections() + SPARE_FILES
    if files != resource.RLIM_INFINITY and files < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def settle_memory() -> None:
    """Large blocks are given back as soon as they are free, and the collector passes over all that lives as long as the process."""
    allocator.return_large_blocks()
    gc.collect()
    gc.freeze()


def post_worker_init(worker: Any) -> None:
    """gunicorn's hook: those who wait are let go as soon as the worker is asked to stop, so that it can."""
    gc.enable()
    tracing.start("nowserving-api")
    settle_memory()
    # Not imported here: this module is read before gevent has patched the locks of the registry.
    registry, beat = worker.wsgi.extensions["waiter_registry"], worker.wsgi.extensions["heartbeat"]

    def watch() -> None:
        while worker.alive:
            time.sleep(0.2)
        registry.close()

    threading.Thread(target=watch, name="leaving", daemon=True).start()
    threading.Thread(target=beat.run, args=(lambda: worker.alive,), name="heartbeat", daemon=True).start()
