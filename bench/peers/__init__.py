"""Alternatives to nowserving, each with its own recommended settings, all measured against one fake upstream.

ours: nowserving. litellm: the proxy. recipe: Flask, Celery prefork, autoretry_for, rate_limit. script: AsyncOpenAI and a semaphore.
"""
