"""Writes the end of an attempt in one transaction, then notifies; while Postgres is unavailable, the record goes to the spool.

A paid answer is never dropped. The write is fenced by the dispatch id and may be repeated, so any worker process can replay the spool
(workers/results/replay.py).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from models.billing import usage
from models.billing.usage import Usage
from models.config.settings import settings
from models.content import artifacts
from models.content.endpoints import CHAT
from models.content.image_placeholders import ExtractedImage
from models.database import db, large_values, retrying
from models.jobs import completion, requeue
from models.jobs.states import AttemptResult, JobResult, Outcome
from models.platform import crash_points, json_reading, wire
from models.platform.errors import Unavailable
from models.sessions import stored_completions
from workers.channels import notify
from workers.observe import counters
from workers.results import spool
from workers.results.answer_usage import usage_of, without_images
from workers.results.attempt_record import AttemptRecord

log = logging.getLogger(__name__)

# The worker's thread retries for this long. Then the answer goes to disk, and the thread is free for other jobs.
TRY_S = 5.0


def write(record: AttemptRecord) -> Usage | None:
    """Commits the record, or saves it in the spool after TRY_S without Postgres.

    Returns the answer's usage; None without an answer, or when the record was spooled.
    """
    while True:
        try:
            return retrying.while_unavailable(lambda: commit(record), for_s=TRY_S)
        except Unavailable:
            if _spool(record):
                return None
        time.sleep(retrying.PAUSE_S)


def requeue_unclaimed(row: Any, *, why: str, delay_s: float) -> None:
    """Requeues an admitted job that was not claimed. row: of claims.find_claimable. During an outage the reaper does it later."""
    try:
        with db.begin() as session:
            requeue.requeue_job(session, row.id, row.dispatch_id, AttemptResult(Outcome.NOT_SENT), delay_s=delay_s, reason=why)
    except Unavailable:
        return
    notify.call_ended(row.id, "queued", lane_id=row.lane_id, receivers=())


def commit(record: AttemptRecord) -> Usage | None:
    """Writes result, usage, price, images, event and next turn in one transaction, then publishes the wake-ups.

    Returns the answer's usage, None without an answer. Raises Unavailable.
    """
    crash_points.hit("worker.before_finish")
    with large_values.transfer_slot(record.body_bytes):
        return _commit(record)


def _commit(record: AttemptRecord) -> Usage | None:
    record, images = without_images(record)
    receivers: Sequence[str] | None = None
    used: Usage | None = None
    if record.result is None:
        is_written = _requeue(record)
    else:
        used, attempt = usage_of(record, record.result)
        row = _finish(record, record.result, images, used, attempt)
        is_written, receivers = row is not None, row.due if row is not None else None
    crash_points.hit("worker.after_finish")
    counters.ended(record)
    if not is_written:
        log.warning(
            "too late: the job went on without this attempt",
            extra={"job": wire.public_id(record.job_id), "dispatch_id": str(record.dispatch_id)},
        )
    # The lane has a new candidate: the requeued job, or the conversation's next turn.
    lane_id = record.lane_id if record.result is None or record.is_turn else None
    notify.call_ended(record.job_id, "ended" if record.result else "queued", lane_id=lane_id, receivers=receivers or ())
    return used


def _requeue(record: AttemptRecord) -> bool:
    with db.begin() as session:
        return requeue.requeue_job(
            session, record.job_id, record.dispatch_id, record.finding, delay_s=record.delay_s, counts=record.counts, reason=record.why,
            throttled=record.throttled, refusal=record.refusal,
        )  # fmt: skip


def _finish(
    record: AttemptRecord, result: JobResult, images: Sequence[ExtractedImage], used: Usage | None, attempt: AttemptResult
) -> Any | None:
    """Ends the job; None: this dispatch no longer holds it. A plain answer takes one statement."""
    if not record.is_turn and not images and record.store_as is None:
        with db.autocommit() as session:
            row = completion.finish_fast(session, record.job_id, record.dispatch_id, result, attempt, used)
        if row is not None:
            return row
    with db.begin() as session:
        row = completion.finish(session, record.job_id, record.dispatch_id, result, attempt)
        if used is not None:
            # Also for a late answer: it was paid for, whether or not the job takes it.
            usage.store_usage(
                session, used, dispatch_id=record.dispatch_id, job_id=record.job_id, key_id=record.key_id, model=record.model,
                cost_microusd=attempt.cost_microusd,
            )  # fmt: skip
        if row is not None:
            artifacts.store(session, record.job_id, images)
            if record.store_as is not None:
                stored_completions.insert(
                    session, job_id=record.job_id, key_id=record.key_id, endpoint=CHAT, model=record.model,
                    answer=json_reading.json_object(result.response or b""), metadata=record.store_as,
                )  # fmt: skip
        return row


def _spool(record: AttemptRecord) -> bool:
    """Saves the record on disk. False when the disk is full or missing: the thread then goes on trying, because it holds the only copy."""
    try:
        with large_values.transfer_slot(record.body_bytes, gives_up=False):
            spool.save(record)
    except OSError as error:
        log.error(
            "an answer can be stored neither in Postgres nor on disk; trying again",
            extra={"job": wire.public_id(record.job_id), "folder": str(settings().data_dir / "spool"), "error": error.strerror},
        )
        return False
    return True
