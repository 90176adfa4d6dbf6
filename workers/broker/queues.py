"""Celery's queues and the names by which workers know their tasks; Flower shows a title instead (models/jobs/task_names.py)."""

from __future__ import annotations

QUEUE = "jobs"
WEBHOOKS = "webhooks"
NAME = "nowserving.job"
WEBHOOK_NAME = "nowserving.webhook"
