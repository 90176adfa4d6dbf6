"""Celery's queues and task names. Flower shows a readable name instead (models/jobs/task_names.py)."""

from __future__ import annotations

JOB_QUEUE = "jobs"
WEBHOOK_QUEUE = "webhooks"
JOB_TASK = "nowserving.job"
WEBHOOK_TASK = "nowserving.webhook"
