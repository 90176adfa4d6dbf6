"""Fails jobs whose callers have waited too long on a connection for a parked pool, one that the upstream refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.config.settings import settings
from models.database import db
from models.jobs import completion
from models.keys import parking
from models.queue import admission
from workers.channels import notify
from workers.pacer.wait_log import log_left_queue

MAX_PARKED = 200
TOO_MANY, UNAVAILABLE = 429, 503


def fail_parked() -> None:
    """Fails up to MAX_PARKED jobs and notifies their callers. Raises Unavailable."""
    with db.autocommit() as session:
        rows = parking.jobs_parked_too_long(session, longer_than_s=settings().parked_most_s, limit=MAX_PARKED)
    for row in rows:
        error, status = _error_of(row.words or {})
        with db.begin() as session:
            has_failed = completion.fail_queued(session, row.id, error=error, http_status=status)
            queued_since = admission.queued_since(session, [row.id]) if has_failed and row.calls else {}
        if has_failed:
            notify.job_changed(row.id, "ended")
            log_left_queue(row, queued_since.get(row.id, row.created_at), why=str(error["code"]))


def _error_of(refusal: Mapping[str, Any]) -> tuple[dict[str, object], int]:
    """The job's error and status. refusal: status and error of the upstream's last refusal.

    An account without money stays a 429, as at the upstream. A refused key is a 503: only the operator can fix it.
    """
    upstream_error: dict[str, Any] = refusal.get("error") or {}
    message = (
        f"The upstream refuses every key of this pool, and has for {settings().parked_most_s:g} s or longer. Its last words: "
        f"{upstream_error.get('message') or 'none'} Ask the operator to mend it and send the request again; a job of POST /v1/jobs goes on "
        "waiting."
    )
    defaults = {"type": "server_error", "param": None, "code": "parked"}
    status = TOO_MANY if refusal.get("status") == TOO_MANY else UNAVAILABLE
    return {**defaults, **upstream_error, "message": message}, status
