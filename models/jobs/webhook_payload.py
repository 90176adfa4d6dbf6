"""The payload of a webhook: the event with the whole job as it is when the delivery is claimed."""

from __future__ import annotations

from typing import Any

from models.database.db import Transaction
from models.jobs import job_view
from models.platform import wire
from models.platform.errors import NotFound
from models.webhooks import outbox

# A larger result is not pushed: the job in the event has `null`, and its receiver fetches it by the job's id.
MAX_RESULT_BYTES = 1024 * 1024


def render(session: Transaction, row: Any) -> bytes:
    """The event with the job as it is now; with the job's id alone when the job is gone. row: a delivery's."""
    data: dict[str, Any] = {"id": wire.public_id(row.job_id)}
    try:
        job = job_view.find_job(session, row.job_id, row.key_id)
    except NotFound:
        pass
    else:
        data = job_view.render_job(session, job, with_result=job_view.result_bytes(session, job) <= MAX_RESULT_BYTES)
    return outbox.event_payload(row.event_id, outbox.EventType(row.event_type), at=int(row.event_at.timestamp()), data=data)
