"""The textbook recipe, as tutorials have it: Flask takes a job, Celery's prefork workers call OpenAI, autoretry_for meets the 429s.

`gunicorn bench.peers.recipe_app:web` and `celery -A bench.peers.recipe_app:queue worker`; the addresses are in RECIPE_… in the environment.
"""

from __future__ import annotations

import os

from celery import Celery
from celery.result import AsyncResult
from flask import Flask, request
from flask.typing import ResponseReturnValue
from openai import APIConnectionError, InternalServerError, OpenAI, RateLimitError

RATE_LIMIT = os.environ.get("RECIPE_RATE_LIMIT") or None
ACCEPTED = 202

web = Flask(__name__)
queue = Celery(__name__, broker=os.environ["RECIPE_BROKER"], backend=os.environ["RECIPE_RESULTS"])
# As Celery's guide on optimizing has it for long tasks: one message a process at a time, acknowledged when done.
queue.conf.update(worker_prefetch_multiplier=1, task_acks_late=True, broker_connection_retry_on_startup=True)
# Celery retries, so the library does not.
openai = OpenAI(base_url=os.environ["RECIPE_UPSTREAM"], api_key=os.environ["RECIPE_KEY"], max_retries=0)


@queue.task(
    autoretry_for=(RateLimitError, APIConnectionError, InternalServerError),
    retry_backoff=True,
    retry_backoff_max=60,
    retry_jitter=True,
    max_retries=5,
    rate_limit=RATE_LIMIT,
)  # type: ignore[untyped-decorator]  # Celery has no types
def answer(body: dict[str, object]) -> dict[str, object]:
    return openai.chat.completions.create(**body).model_dump()  # type: ignore[call-overload, no-any-return]  # the body as it came


@web.post("/v1/jobs")
def submit() -> ResponseReturnValue:
    return {"id": answer.delay(request.get_json()["body"]).id}, ACCEPTED


@web.get("/v1/jobs/<job_id>")
def look(job_id: str) -> ResponseReturnValue:
    result = AsyncResult(job_id, app=queue)
    return {"status": result.status, "result": result.result if result.successful() else None}


@web.get("/readyz")
def ready() -> ResponseReturnValue:
    return {"workers": list(queue.control.ping(timeout=0.5))}
