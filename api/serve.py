"""gunicorn's configuration: `gunicorn -c python:api.serve "api.app:create_app()"`, which is what `nowserving api` runs.

The worker class is gevent: half-sent headers and stalled clients block the threaded worker (measured).
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

# The shared folder of the workers' metrics. It must be set before prometheus_client is imported and the settings are read.
METRICS_FOLDER = metrics_folder.create()
os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(METRICS_FOLDER)

SPARE_CONNECTIONS = 1_000
SPARE_FILES = 200


def listen_address() -> str:
    """Host and port to listen on."""
    host = settings().host
    return f"{f'[{host}]' if ':' in host else host}:{settings().port}"


def max_connections() -> int:
    """The connections of a process: all waiters and SPARE_CONNECTIONS more, or fewer where the limit of open files is lower."""
    count = settings().max_waiting_per_process + SPARE_CONNECTIONS
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    return count if limit == resource.RLIM_INFINITY else max(1, min(count, limit - SPARE_FILES))


class Log(Logger):  # type: ignore[misc]  # its base is Any
    """gunicorn's log, in our format and with our redaction. api/http/access_log.py writes its line for each request."""

    def setup(self, cfg: Any) -> None:
        """Sends all lines through our handlers."""
        super().setup(cfg)
        logging.config.dictConfig(logs.config(settings().log_level))
        for own in (self.error_log, self.access_log):
            own.handlers.clear()
            own.propagate = True

    def access(self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta) -> None:
        """Logs a request and clears the log context."""
        access_log.log_request(environ, status=resp.status_code, sent_bytes=resp.sent, took_s=request_time.total_seconds())
        # The next request on this connection starts with an empty log context.
        logs.bind()


logger_class = Log
bind = [listen_address()]
workers = settings().api_processes
worker_class = "api.server.gunicorn_worker.Worker"
worker_connections = max_connections()
timeout = 30
graceful_timeout = 30
keepalive = 5
limit_request_line = 4094
limit_request_fields = 64
limit_request_field_size = 8190
forwarded_allow_ips = ",".join(("127.0.0.1", "::1", *settings().trusted_proxies))
# The control socket is not used.
control_socket_disable = True
loglevel = settings().log_level.lower()


def post_fork(server: Any, worker: Any) -> None:
    """gunicorn's hook. Disables the garbage collector during the imports: it takes a third of their time and frees nothing."""
    gc.disable()


def child_exit(server: Any, worker: Any) -> None:
    """gunicorn's hook. Removes the live gauges of a process that has ended."""
    for file in METRICS_FOLDER.glob(f"gauge_live*_{worker.pid}.db"):
        file.unlink(missing_ok=True)


def worker_exit(server: Any, worker: Any) -> None:
    """gunicorn's hook, in the worker: exports the remaining spans."""
    tracing.stop()


def on_exit(server: Any) -> None:
    """gunicorn's hook. Removes the metrics of this run."""
    metrics_folder.remove(METRICS_FOLDER)


def on_starting(server: Any) -> None:
    """gunicorn's hook. Refuses to start without the required settings, and raises the limit of open files."""
    try:
        check_settings()
    except NotConfigured as error:
        raise SystemExit(f"error: {error}") from None
    # The usual soft limit of 1,024 protects programs that use select(), which this one does not.
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = max_connections() + SPARE_FILES
    if soft_limit != resource.RLIM_INFINITY and soft_limit < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard_limit))


def tune_memory() -> None:
    """Returns large blocks to the system as soon as they are free, and excludes the imported objects from garbage collection."""
    allocator.return_large_blocks()
    gc.collect()
    gc.freeze()


def post_worker_init(worker: Any) -> None:
    """gunicorn's hook. Starts the heartbeat, and the thread that wakes all waiters when the worker is asked to stop."""
    gc.enable()
    tracing.start("nowserving-api")
    tune_memory()
    # Not imported: gunicorn loads this module before gevent patches the locks of the registry.
    registry, heartbeat = worker.wsgi.extensions["waiter_registry"], worker.wsgi.extensions["heartbeat"]

    def close_when_stopped() -> None:
        while worker.alive:
            time.sleep(0.2)
        registry.close()

    threading.Thread(target=close_when_stopped, name="stop watcher", daemon=True).start()
    threading.Thread(target=heartbeat.run, args=(lambda: worker.alive,), name="heartbeat", daemon=True).start()
