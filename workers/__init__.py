"""Processes that run jobs: pacer, Celery workers, webhook sender and Flower. Imports models, never api."""
