"""What people use today where nowserving would stand, each with its own recommended settings, all measured at one upstream.

ours: nowserving. litellm: the proxy. recipe: Flask, Celery prefork, autoretry_for, rate_limit. script: AsyncOpenAI and a semaphore.
"""
