"""The payload of a webhook: the event with the whole job as it is when the delivery is claimed."""

from __future__ import annotations

from typing import Any

from models.database.db import Transaction
from models.jobs import job_rows, job_view
from models.platform import wire
from models.platform.errors import NotFound
from models.webhooks import outbox

# A larger result is not sent: the job in the event has `null`, and the receiver fetches the result by the job's id.
MAX_RESULT_BYTES = 1024 * 1024


def render(session: Transaction, row: Any) -> bytes:
    """Renders the event with the job as it is now, or with the job's id alone if the job is deleted. row: of a delivery."""
    data: dict[str, Any] = {"id": wire.public_id(row.job_id)}
    try:
        job = job_rows.find_job(session, row.job_id, row.key_id)
    except NotFound:
        pass
    else:
        data = job_view.render_job(session, job, with_result=job_view.result_bytes(session, job) <= MAX_RESULT_BYTES)
    return outbox.event_payload(row.event_id, outbox.EventType(row.event_type), at=int(row.event_at.timestamp()), data=data)
