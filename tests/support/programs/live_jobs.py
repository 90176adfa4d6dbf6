"""Jobs of a running stack: submitting them, waiting for their end, and the invariants that must hold afterwards."""

from __future__ import annotations

import base64
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import text

from models.database import db
from models.jobs import cancellation
from models.jobs.states import TERMINAL
from models.keys import keys
from models.keys.keys import Key, Limits
from models.queue import lanes
from tests.support.programs.process import PATIENCE_S, until
from tests.support.programs.processes import Stack
from tests.support.queue_tools import store_limits, submit
from tests.upstream.chat import echo
from tests.upstream.journal import Call
from workers.channels import notify


def caller(token: str, *, model: str = "m", **limits: int) -> Key:
    """Registers the caller's own key with this token, with these limits for every model."""
    with db.begin() as session:
        found = keys.authenticate(session, token)
        if limits:
            credential_id = session.execute(text("SELECT id FROM credential WHERE pool_id = :id"), {"id": found.pool_id}).scalar_one()
            store_limits(session, credential_id, Limits(**limits))
    return found


def ask(who: Key, prompt: str, *, model: str = "m", **order: Any) -> UUID:
    """Submits a chat job with this prompt as the API does; returns its id."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], **order.pop("body", {})}
    job_id = submit(who, model=model, request=json.dumps(body).encode(), **order)
    wake_lane(who, model=model)
    return job_id


def cancel(job_id: UUID) -> None:
    """Cancels a job as the API does."""
    with db.begin() as session:
        stopped = cancellation.cancel(session, job_id, row(job_id).key_id)
    if stopped is not None:
        notify.job_changed(job_id, "cancelling" if stopped.status == "running" else "cancelled")


def wake_lane(who: Key, *, model: str = "m") -> None:
    notify.lane_changed(lanes.id_of(who.pool_id, model))


def row(job_id: UUID) -> Any:
    return rows([job_id])[0]


def rows(job_ids: Iterable[UUID]) -> Sequence[Any]:
    """The rows of these jobs, in this order."""
    with db.begin() as session:
        found = {one.id: one for one in session.execute(text("SELECT * FROM job WHERE id = ANY(:ids)"), {"ids": list(job_ids)})}
    return [found[number] for number in job_ids]


def attempts(job_id: UUID) -> list[str]:
    """The outcome of each of the job's attempts, in order."""
    with db.begin() as session:
        found = session.execute(text("SELECT outcome FROM attempt WHERE job_id = :id ORDER BY n"), {"id": job_id})
        return [one.outcome for one in found]


def wait_ended(job_ids: Sequence[UUID], *, within_s: float = PATIENCE_S, stack: Stack | None = None) -> Sequence[Any]:
    """Waits until all these jobs have ended; returns their rows. Raises TimeoutError with the processes' logs."""

    def ended() -> Sequence[Any] | None:
        found = rows(job_ids)
        return found if all(one.status in TERMINAL for one in found) else None

    try:
        return until(ended, what="ended", within_s=within_s, every_s=0.05)  # type: ignore[no-any-return]
    except TimeoutError as error:
        states = Counter(one.status for one in rows(job_ids))
        raise TimeoutError(f"{error}: {dict(states)}\n{stack.logs() if stack else ''}") from None


def wait_status(job_id: UUID, *statuses: str, within_s: float = PATIENCE_S) -> Any:
    found = until(lambda: one if (one := row(job_id)).status in statuses else None, what=f"{job_id} {statuses}", within_s=within_s)
    return found


def violations(job_ids: Iterable[UUID], calls: Iterable[Call]) -> list[str]:
    """The violated invariants. calls: all calls that the upstream received for these jobs; calls for other jobs may be among them."""
    jobs = {one.id: one for one in rows(list(job_ids))}
    with db.begin() as session:
        job_of = {str(one.dispatch_id): one.job_id for one in session.execute(text("SELECT dispatch_id, job_id FROM attempt"))}
    found = [f"{one.id} is still {one.status}" for one in jobs.values() if one.status not in TERMINAL]
    answered: dict[UUID, int] = defaultdict(int)
    for call in calls:
        job_id = job_of.get(call.headers.get("x-client-request-id", ""))
        if job_id is None:
            found.append(f"call {call.n} ({call.text!r}) is of no attempt on record")
        elif call.outcome == "200" and job_id in jobs:
            answered[job_id] += 1
    found += [
        f"{number} was answered {n} times and is not flagged"
        for number, n in answered.items()
        if n > 1 + jobs[number].possible_duplicate_calls
    ]
    return found + [f"{one.id} has another job's answer" for one in jobs.values() if one.status == "succeeded" and not _is_own(one)]


def prompt_of(one: Any) -> str:
    """The prompt of this chat job."""
    return str(json.loads(one.request)["messages"][-1]["content"])


def _is_own(one: Any) -> bool:
    return bool(echo(prompt_of(one)) == json.loads(one.response)["choices"][0]["message"]["content"])


def decoded(body: str) -> bytes:
    """The decoded body of a Celery message."""
    return base64.b64decode(body)
