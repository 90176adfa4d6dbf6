"""The modules that a prefork server imports before it forks the pacer and the workers (models/platform/fork_server.py).

None of them may depend on what differs between the programs: the settings, or prometheus_client, which reads PROMETHEUS_MULTIPROC_DIR
when it is imported. tests/models/platform/test_fork_server.py checks that.
"""

from __future__ import annotations

PRELOADS = (
    "sqlalchemy.dialects.postgresql.psycopg", "psycopg", "models.database.db", "models.jobs.completion", "models.queue.conversations",
    "models.webhooks.outbox",
    "models.jobs.workers", "models.queue.lane_maintenance", "models.ops.retention", "models.billing.pricing", "models.telemetry.logs",
    "models.telemetry.tracing",
    "kombu.transport.redis", "celery.app.base", "celery.app.amqp", "celery.app.events", "celery.app.log", "celery.app.control",
    "celery.app.trace", "celery.apps.worker", "celery.concurrency.thread", "celery.events.state", "celery.worker.autoscale",
    "celery.worker.components", "celery.worker.consumer", "celery.worker.control", "celery.worker.strategy", "celery.fixups.django",
    "celery.loaders.app", "redis.sentinel", "ssrfguard", "standardwebhooks", "openai", "openai.resources",
    "workers.upstream.client", "workers.answers.retry_policy",
)  # fmt: skip
