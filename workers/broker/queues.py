"""Celery's queues and the names by which workers know their tasks; Flower shows a title instead (models/jobs/task_names.py)."""

from __future__ import annotations

JOB_QUEUE = "jobs"
WEBHOOK_QUEUE = "webhooks"
JOB_TASK = "nowserving.job"
WEBHOOK_TASK = "nowserving.webhook"
