"""Bulk retry: resubmits failed and expired jobs, oldest first. A job that cannot be resubmitted is counted and skipped."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from api.ops import job_actions
from models.access.audit_log import Act
from models.database import db
from models.ops import bulk
from models.ops.bulk import JobFilter
from models.platform import wire
from models.platform.errors import ServingError, Unavailable

log = logging.getLogger(__name__)

MAX_ERRORS = 10


@dataclass
class Report:
    """Counts of one bulk retry. reasons: jobs per error code. errors: the first MAX_ERRORS. last_id: the cursor for the next call."""

    retried: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    errors: list[Mapping[str, str]] = field(default_factory=list)
    has_more: bool = False
    last_id: UUID | None = None

    def skip(self, job_id: UUID, error: ServingError) -> None:
        """Counts a job that could not be resubmitted."""
        self.reasons[error.code] += 1
        if len(self.errors) < MAX_ERRORS:
            self.errors.append({"job": wire.public_id(job_id), "code": error.code, "message": str(error)})

    def show(self) -> dict[str, Any]:
        """Returns the report in the form of the API and the command line."""
        return {
            "retried": self.retried, "refused": self.reasons.total(), "reasons": dict(self.reasons), "errors": self.errors,
            "has_more": self.has_more, "last_id": None if self.last_id is None else wire.public_id(self.last_id),
        }  # fmt: skip


def run(act: Act, which: JobFilter, *, after: UUID | None, until: float) -> Report:
    """Retries the matching jobs that no job repeats yet, in order of their ids, each in its own transaction.

    after: the last job of the previous call; None: from the oldest. until: the monotonic time when the call returns with has_more.
    Raises Unavailable when Postgres is unavailable before the first job; later the call returns what was done until then.
    """
    report = Report(last_id=after)
    while True:
        with db.autocommit() as session:
            rows = bulk.retryable(session, which, after=report.last_id, limit=bulk.BATCH_SIZE)
        for row in rows:
            if time.monotonic() >= until or not _retry(act, row, report):
                report.has_more = True
                return report
            report.last_id = row.id
        if len(rows) < bulk.BATCH_SIZE:
            return report


def _retry(act: Act, row: Any, report: Report) -> bool:
    """Retries one job; False when Postgres is unavailable and the call must end. row: from bulk.retryable."""
    try:
        report.retried += job_actions.resubmit(act, row.id, bulk.job_key(row), is_only_once=True) is not None
    except Unavailable:
        if not report.retried:
            raise
        return False
    except ServingError as error:
        report.skip(row.id, error)
    except Exception:
        # Any error of a single job is counted and must not end the bulk retry.
        log.exception("a job could not be retried", extra={"job": wire.public_id(row.id)})
        report.skip(row.id, ServingError("This job could not be retried. The server's log has the cause."))
    return True
