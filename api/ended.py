"""Waiting until a job has ended, for callers that can wait on their connection."""

from __future__ import annotations

import time
from uuid import UUID

from flask import request

from api.waiting import hall
from models import db, view
from models.errors import Unauthorised
from models.job import TERMINAL


def wait(job_id: UUID, key_id: int, *, wait_s: float) -> None:
    """Returns when the job has ended, the client of this request has gone or the time is up. Raises NotFound, Unauthorised when the key
    was revoked."""
    until = time.monotonic() + wait_s
    with db.autocommit() as session:
        if view.find(session, job_id, key_id).status in TERMINAL:
            return
    with hall.wait_for(job_id, connection=request.environ.get("gunicorn.socket")) as seat:
        while seat.status not in TERMINAL and not (seat.is_gone or seat.is_revoked or hall.is_closing):
            if (left_s := until - time.monotonic()) <= 0:
                break
            seat.wait(left_s)
    if seat.is_revoked:
        raise Unauthorised
