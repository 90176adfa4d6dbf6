"""Celery: the app, its Redis transport, its queues, publishing, and the watchdog of a consumer that stopped receiving.

A message carries ids only; the state of a job is in PostgreSQL.
"""
