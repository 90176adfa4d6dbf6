"""Helpers for conversations: submit turns through the API, claim them, and answer them as a worker does."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from models.content.endpoints import CHAT
from models.database import db
from models.jobs import claims
from models.jobs.states import AttemptResult, JobResult, Outcome, Status
from models.platform import wire
from tests.support.http_tools import Caller
from tests.support.queue_tools import admit, query
from workers.results import finish
from workers.results.attempt_record import AttemptRecord
from workers.runner import prompt

Messages = list[dict[str, Any]]
SESSION = "tea"
GOOD = AttemptResult(Outcome.SUCCEEDED, 200, "req_1")
REFUSED = AttemptResult(Outcome.REFUSED, 400, "req_1")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def say(caller: Caller, *messages: str | dict[str, Any], session: str = SESSION, body: dict[str, Any] | None = None, **more: Any) -> str:
    """Submits a new turn; returns its job. messages: texts of the user, or whole messages."""
    chat = [user(message) if isinstance(message, str) else message for message in messages]
    request = {"model": "m", "messages": chat, "max_tokens": 10, **(body or {})}
    return caller.submit(endpoint=CHAT, body=request, conversation=session, **more)


def claim(caller: Caller, name: str) -> Any:
    """The turn's row as a worker has it when its call goes out."""
    dispatch_id = admit(caller.key, wire.parse_id(name))
    with db.begin() as session:
        return prompt.assemble(session, claims.claim(session, wire.parse_id(name), dispatch_id, lease_s=30))


def sent(row: Any) -> Messages:
    """The messages that go out for this claimed turn."""
    messages: Messages = json.loads(bytes(row.request))["messages"]
    return messages


def answer(row: Any, result: str | dict[str, Any]) -> None:
    """The claimed turn has this answer: a text, or a whole message."""
    message = assistant(result) if isinstance(result, str) else result
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
    end(row, JobResult(Status.SUCCEEDED, http_status=200, response=body), GOOD)


def fail(row: Any, *, code: str = "bad") -> None:
    """The claimed turn was refused by its upstream."""
    error = {"message": "no", "type": "invalid_request_error", "param": None, "code": code}
    end(row, JobResult(Status.FAILED, http_status=400, error=error), REFUSED)


def end(row: Any, result: JobResult, finding: AttemptResult) -> None:
    finish.commit(AttemptRecord(row.id, row.dispatch_id, row.key_id, row.lane_id, row.model, finding, result, is_turn=True))


def talk(caller: Caller, *result: str | dict[str, Any], reply: str | dict[str, Any] = "yes", **more: Any) -> Messages:
    """One turn from its submit to its answer; what went out for it."""
    row = claim(caller, say(caller, *result, **more))
    answer(row, reply)
    return sent(row)


def pass_time(minutes: float) -> None:
    """All that has happened so far happened so much earlier."""
    query(
        "UPDATE job SET created_at = created_at - make_interval(mins => :minutes), ended_at = ended_at - make_interval(mins => :minutes)",
        minutes=minutes,
    )


def stored(job_id: UUID) -> Any:
    (row,) = query("SELECT * FROM job WHERE id = :id", id=job_id)
    return row
