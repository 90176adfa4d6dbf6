"""Flower: its process, the handlers that we replace, and the Celery events that show each job.

Start it with `python -m workers.flower`.
"""
