"""JSON of the public API: the type of a JSON object, timestamps, and ids of jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from models.platform import ids

JsonObject = dict[str, Any]
JOB_PREFIX = "job_"


def public_id(job_id: UUID) -> str:
    """`job_` and the 32 hex digits of the UUIDv7."""
    return ids.format_id(JOB_PREFIX, job_id)


def parse_id(text_id: str) -> UUID:
    """The UUID of `job_…`. Raises NotFound for anything else: malformed, foreign and deleted ids look the same."""
    return ids.parse_id(JOB_PREFIX, text_id, otherwise="No such job.")


def epoch(at: datetime | None) -> float | None:
    """Seconds since 1970, the format of every timestamp in the API."""
    return None if at is None else round(at.timestamp(), 3)
