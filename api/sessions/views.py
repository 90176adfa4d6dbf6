"""The session routes: create, list, read, change and delete sessions and their turns."""

from __future__ import annotations

import time

from flask import Blueprint, Response, request

from api.access import auth, visitors
from api.http import paging, render, request_body
from api.sessions.schemas import NewSession, SessionChange
from api.submit import images, schemas
from api.waiting import notify_queue
from models.database import db
from models.jobs import cancellation
from models.jobs.states import Status
from models.keys.keys import Key
from models.platform.errors import Invalid
from models.sessions import deletion, sessions
from models.sessions import messages as message

routes = Blueprint("sessions", __name__)

ERASE_BATCH = 200


@routes.post("/sessions")
def create() -> Response:
    """Creates a session without turns and returns 201. Optional: the first job with this id creates one too."""
    caller = auth.authenticate(request)
    body = schemas.validate(NewSession, request_body.read_json(request))
    visitors.check_session(request, body.id)
    with db.begin() as transaction:
        row = sessions.create(transaction, caller.id, body.id, body.fields())
    return render.json_response(sessions.to_json(row), 201)


@routes.get("/sessions")
def list_sessions() -> Response:
    """Lists this key's sessions, the last active first."""
    caller, limit, after = auth.authenticate(request), paging.parse_limit(), paging.parse_after(sessions.parse_id)
    with db.begin() as transaction:
        rows = sessions.list_sessions(transaction, caller.id, limit=limit, after=after, begins=visitors.session_prefix(request))
    return paging.list_response([sessions.to_json(row) for row in rows[:limit]], has_more=len(rows) > limit)


@routes.get("/sessions/<name>")
def get(name: str) -> Response:
    """Returns the session."""
    caller, name = auth.authenticate(request), sessions.parse_id(name)
    with db.begin() as transaction:
        row = sessions.get(transaction, caller.id, name)
    return render.json_response(sessions.to_json(row))


@routes.patch("/sessions/<name>")
def update(name: str) -> Response:
    """Changes the session. The changes apply to turns that are enqueued from now on."""
    caller, name = auth.authenticate(request), sessions.parse_id(name)
    body = schemas.validate(SessionChange, request_body.read_json(request))
    with db.begin() as transaction:
        row = sessions.update(transaction, caller.id, name, body.fields())
    return render.json_response(sessions.to_json(row))


@routes.get("/sessions/<name>/messages")
def list_messages(name: str) -> Response:
    """Lists the session's messages, newest first unless `order=asc`."""
    caller, name = auth.authenticate(request), sessions.parse_id(name)
    limit, after, is_ascending = paging.parse_limit(), paging.parse_after(message.parse_id), _is_ascending()
    with db.begin() as transaction:
        number = sessions.get(transaction, caller.id, name).id
        shown, has_more = message.list_messages(
            transaction, number, limit=limit, after=after, is_ascending=is_ascending, now=time.time(), origin=images.origin(request)
        )
    return paging.list_response(shown, has_more=has_more)


@routes.delete("/sessions/<name>/messages/<message_name>")
def delete_turn(name: str, message_name: str) -> Response:
    """Deletes the turn of this message from the session and its history. 409 while it waits or runs."""
    caller, name, turn = auth.authenticate(request), sessions.parse_id(name), (message.parse_id(message_name) + 1) // 2
    with db.begin() as transaction:
        deletion.erase_turn(transaction, sessions.get(transaction, caller.id, name).id, turn)
    return render.json_response({"id": message_name, "object": "session.turn.deleted", "turn": turn, "deleted": True})


@routes.delete("/sessions/<name>")
def delete(name: str) -> Response:
    """Deletes the session with its requests and answers; its waiting and running jobs are cancelled."""
    caller, name = auth.authenticate(request), sessions.parse_id(name)
    with db.begin() as transaction:
        number = deletion.mark_deleted(transaction, caller.id, name)
    _cancel_jobs(caller, number)
    has_more = True
    while has_more:
        with db.begin() as transaction:
            has_more = deletion.erase_turns(transaction, conversation_id=number, limit=ERASE_BATCH) == ERASE_BATCH
    with db.begin() as transaction:
        deletion.remove_sessions(transaction, conversation_id=number, limit=1)
    return render.json_response({"id": name, "object": "session.deleted", "deleted": True})


def _cancel_jobs(caller: Key, conversation_id: int) -> None:
    """Cancels the session's jobs, the last turn first, so that none is enqueued in another's place.

    Each job has its own transaction, because jobs.cancel takes several locks.
    """
    with db.begin() as transaction:
        rows = deletion.open_turns(transaction, conversation_id)
    for row in rows:
        with db.begin() as transaction:
            cancelled = cancellation.cancel(transaction, row.id, caller.id)
        if cancelled is not None:
            notify_queue.job_cancelled(row.id, lane_id=row.lane_id, is_ended=cancelled.status == Status.CANCELLED)


def _is_ascending() -> bool:
    order = request.args.get("order", "desc")
    if order not in ("asc", "desc"):
        raise Invalid("`order` is asc or desc.", param="order")
    return order == "asc"
