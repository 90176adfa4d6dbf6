"""Waiting until a job has ended, for callers that can wait on their connection."""

from __future__ import annotations

import time
from uuid import UUID

from flask import request

from api.waiting.waiters import hall
from models.database import db
from models.jobs import job_view
from models.jobs.states import TERMINAL
from models.platform.errors import TooManyWaiting, Unauthorised, Unavailable


def wait(job_id: UUID, key_id: int, *, wait_s: float) -> float | None:
    """Returns when the job has ended, the client of this request has gone or the time is up.

    At once when this process has no seat for this key: then it returns after how many seconds to ask again, else None. Raises NotFound,
    Unauthorised when the key was revoked.
    """
    with db.autocommit() as session:
        if job_view.find(session, job_id, key_id).status in TERMINAL:
            return None
    try:
        _wait(job_id, key_id, until=time.monotonic() + wait_s)
    except (TooManyWaiting, Unavailable) as error:
        return error.retry_after_s
    return None


def _wait(job_id: UUID, key_id: int, *, until: float) -> None:
    with hall.wait_for(job_id, key_id, connection=request.environ.get("gunicorn.socket")) as seat:
        while seat.status not in TERMINAL and not (seat.is_gone or seat.is_revoked or hall.is_closing):
            if (left_s := until - time.monotonic()) <= 0:
                break
            seat.wait(left_s)
    if seat.is_revoked:
        raise Unauthorised
