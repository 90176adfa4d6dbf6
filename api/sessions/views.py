"""Sessions: conversations that remember their turns, listed, read, given rules and deleted."""

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

ERASED_AT_ONCE = 200


@routes.post("/sessions")
def create() -> Response:
    """201: a session without turns. Not needed: the first job that names it makes one."""
    caller = auth.caller(request)
    wanted = schemas.check(NewSession, request_body.read(request))
    visitors.expect_own(request, wanted.id)
    with db.begin() as opened:
        row = sessions.create(opened, caller.id, wanted.id, wanted.fields())
    return render.answer(sessions.show(row), 201)


@routes.get("/sessions")
def listing() -> Response:
    """One page of this key's sessions, the one last active first."""
    caller, limit, after = auth.caller(request), paging.limit(), paging.after(sessions.parse_id)
    with db.begin() as opened:
        rows = sessions.page(opened, caller.id, limit=limit, after=after, begins=visitors.begins(request))
    return paging.answer([sessions.show(row) for row in rows[:limit]], has_more=len(rows) > limit)


@routes.get("/sessions/<name>")
def look(name: str) -> Response:
    """The session as it is now."""
    caller, name = auth.caller(request), sessions.parse_id(name)
    with db.begin() as opened:
        row = sessions.get(opened, caller.id, name)
    return render.answer(sessions.show(row))


@routes.patch("/sessions/<name>")
def change(name: str) -> Response:
    """The session with these changes, which hold for turns that are let into the line from now on."""
    caller, name = auth.caller(request), sessions.parse_id(name)
    wanted = schemas.check(SessionChange, request_body.read(request))
    with db.begin() as opened:
        row = sessions.update(opened, caller.id, name, wanted.fields())
    return render.answer(sessions.show(row))


@routes.get("/sessions/<name>/messages")
def messages(name: str) -> Response:
    """One page of what was said, newest first unless `order=asc`."""
    caller, name = auth.caller(request), sessions.parse_id(name)
    limit, after, is_ascending = paging.limit(), paging.after(message.parse_id), _is_ascending()
    with db.begin() as opened:
        number = sessions.get(opened, caller.id, name).id
        shown, has_more = message.page(
            opened, number, limit=limit, after=after, is_ascending=is_ascending, now=time.time(), origin=images.origin(request)
        )
    return paging.answer(shown, has_more=has_more)


@routes.delete("/sessions/<name>/messages/<message_name>")
def forget(name: str, message_name: str) -> Response:
    """The turn of this message is gone, and no later one is told of it. 409 while it waits or runs."""
    caller, name, turn = auth.caller(request), sessions.parse_id(name), (message.parse_id(message_name) + 1) // 2
    with db.begin() as opened:
        deletion.erase_turn(opened, sessions.get(opened, caller.id, name).id, turn)
    return render.answer({"id": message_name, "object": "session.turn.deleted", "turn": turn, "deleted": True})


@routes.delete("/sessions/<name>")
def delete(name: str) -> Response:
    """The session is gone, with what was asked and answered in it; what waits or runs in it is cancelled."""
    caller, name = auth.caller(request), sessions.parse_id(name)
    with db.begin() as opened:
        number = deletion.mark(opened, caller.id, name)
    _cancel(caller, number)
    is_more = True
    while is_more:
        with db.begin() as opened:
            is_more = deletion.erase(opened, conversation_id=number, limit=ERASED_AT_ONCE) == ERASED_AT_ONCE
    with db.begin() as opened:
        deletion.forget(opened, conversation_id=number, limit=1)
    return render.answer({"id": name, "object": "session.deleted", "deleted": True})


def _cancel(caller: Key, conversation_id: int) -> None:
    """Each in a transaction of its own, as job.cancel takes several locks; the last first, so that none goes in another's place."""
    with db.begin() as opened:
        rows = deletion.open_turns(opened, conversation_id)
    for row in rows:
        with db.begin() as opened:
            done = cancellation.cancel(opened, row.id, caller.id)
        if done is not None:
            notify_queue.job_cancelled(row.id, lane_id=row.lane_id, is_ended=done.status == Status.CANCELLED)


def _is_ascending() -> bool:
    order = request.args.get("order", "desc")
    if order not in ("asc", "desc"):
        raise Invalid("`order` is asc or desc.", param="order")
    return order == "asc"
