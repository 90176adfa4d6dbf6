"""`python -m workers.consumer jobs --name worker0 --threads 8`: one Celery worker process on one queue.

It is `celery worker` without Celery's command line, which imports every plugin that is installed: with Flower's that took 0.4 s.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import MappingProxyType

import click
from celery.utils.nodenames import default_nodename, host_format

from models.config.settings import settings
from workers.broker.queues import JOB_QUEUE, WEBHOOK_QUEUE

# Each registers its task at the same app; a process has the one task of its queue.
MODULES: Mapping[str, str] = MappingProxyType({JOB_QUEUE: "workers.tasks", WEBHOOK_QUEUE: "workers.webhook_tasks"})


@click.command()
@click.argument("queue", type=click.Choice(list(MODULES)))
@click.option("--name", required=True, help="The process's name; @ and the machine's name are added.")
@click.option("--threads", type=click.IntRange(1), required=True)
def main(queue: str, name: str, threads: int) -> None:
    """Takes jobs, or deliveries, until it is told to stop."""
    app = importlib.import_module(MODULES[queue]).app
    worker = app.Worker(
        hostname=host_format(default_nodename(f"{name}@%h")), pool_cls="threads", concurrency=threads, queues=[queue],
        loglevel=settings().log_level, without_gossip=True, without_mingle=True,
    )  # fmt: skip
    worker.start()
    sys.exit(worker.exitcode)


if __name__ == "__main__":
    main()
