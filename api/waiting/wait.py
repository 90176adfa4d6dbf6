"""Long polling: a request that waits until its job has ended."""

from __future__ import annotations

import time
from uuid import UUID

from flask import request

from api.waiting.registry import waiter_registry
from models.database import db
from models.jobs import job_rows
from models.jobs.states import TERMINAL
from models.platform.errors import TooManyWaiting, Unauthorised, Unavailable


def until_ended(job_id: UUID, key_id: int, *, wait_s: float) -> float | None:
    """Returns when the job has ended, the client has disconnected or the time is up.

    When this process has no free waiter for this key, it returns at once, with the seconds after which to poll again; else None.
    Raises NotFound, and Unauthorised when the key was revoked.
    """
    with db.autocommit() as session:
        if job_rows.find_job(session, job_id, key_id).status in TERMINAL:
            return None
    try:
        _wait(job_id, key_id, until=time.monotonic() + wait_s)
    except (TooManyWaiting, Unavailable) as error:
        return error.retry_after_s
    return None


def _wait(job_id: UUID, key_id: int, *, until: float) -> None:
    with waiter_registry.wait_for(job_id, key_id, connection=request.environ.get("gunicorn.socket")) as waiter:
        while waiter.status not in TERMINAL and not (waiter.is_disconnected or waiter.is_revoked or waiter_registry.is_closing):
            if (left_s := until - time.monotonic()) <= 0:
                break
            waiter.wait(left_s)
    if waiter.is_revoked:
        raise Unauthorised
