"""Chat completions that were asked for with `store: true`: listed, read, noted about and deleted, as OpenAI's own routes do it.

They are answered from our own jobs, for the key that stored them; the upstream is not asked.
"""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, request

from api import auth, body, paging, render, schemas
from api.stored_schemas import CompletionChange, Metadata
from models import db, stored_answer, view
from models.db import Session
from models.endpoint import CHAT
from models.errors import Invalid, NotFound
from models.view import JsonObject

routes = Blueprint("stored_completions", __name__)

_METADATA = re.compile(r"metadata\[([^\]]*)\]")
# What OpenAI's stored completions say of their request beside the answer.
_ECHOED = ("tool_choice", "seed", "top_p", "temperature", "presence_penalty", "frequency_penalty", "tools", "response_format")


@routes.get("/chat/completions")
def listing() -> Response:
    """One page of this key's stored completions, oldest first unless `order=desc`."""
    caller, limit, is_ascending = auth.caller(request), paging.limit(), _is_ascending()
    model, metadata = _readable("model"), _metadata_asked()
    with db.autocommit() as session:
        rows = stored_answer.page(
            session,
            caller.id,
            CHAT,
            limit=limit,
            after=_after(session, caller.id),
            is_ascending=is_ascending,
            model=model,
            metadata=metadata,
        )
        shown = [_show(session, row) for row in rows[:limit]]
    return paging.answer(shown, has_more=len(rows) > limit)


@routes.get("/chat/completions/<name>")
def look(name: str) -> Response:
    """The completion, with its metadata."""
    caller = auth.caller(request)
    with db.autocommit() as session:
        shown = _show(session, _get(session, caller.id, name))
    return render.answer(shown)


@routes.post("/chat/completions/<name>")
def change(name: str) -> Response:
    """The completion with this metadata instead of what it had."""
    caller = auth.caller(request)
    wanted = schemas.check(CompletionChange, body.read(request))
    with db.begin() as session:
        stored_answer.set_metadata(session, caller.id, CHAT, _parse(name), wanted.metadata or {})
        shown = _show(session, _get(session, caller.id, name))
    return render.answer(shown)


@routes.delete("/chat/completions/<name>")
def delete(name: str) -> Response:
    """The completion is gone, and what was asked for it; what it used stays on record."""
    caller = auth.caller(request)
    with db.begin() as session:
        stored_answer.delete(session, caller.id, CHAT, _parse(name))
    return render.answer({"object": "chat.completion.deleted", "id": name, "deleted": True})


@routes.get("/chat/completions/<name>/messages")
def messages(name: str) -> Response:
    """One page of the messages that were sent for it, in their order unless `order=desc`."""
    caller, limit, is_ascending = auth.caller(request), paging.limit(), _is_ascending()
    with db.autocommit() as session:
        sent = _request(_get(session, caller.id, name)).get("messages")
    shown = [_message(name, number, one) for number, one in enumerate(sent if isinstance(sent, list) else [])]
    shown = shown if is_ascending else shown[::-1]
    if (after := request.args.get("after")) is not None:
        shown = shown[_place(after, shown) + 1 :]
    return paging.answer(shown[:limit], has_more=len(shown) > limit)


def _get(session: Session, key_id: int, name: str) -> Any:
    return stored_answer.get(session, key_id, CHAT, _parse(name))


def _parse(name: str) -> str:
    if not stored_answer.is_answer_id(name):
        raise NotFound("No completion is stored under this id.", param="completion_id")
    return name


def _show(session: Session, row: Any) -> JsonObject:
    """The upstream's answer, with the metadata as it is now and what OpenAI adds of the request."""
    asked, answer = _request(row), view.result(session, row)
    about = {name: asked.get(name) for name in _ECHOED}
    said = answer if isinstance(answer, dict) else {}
    return {
        **about,
        "input_user": asked.get("user"),
        "request_id": row.upstream_request_id,
        **said,
        "id": row.answer_id,
        "metadata": row.noted,
    }


def _request(row: Any) -> JsonObject:
    try:
        asked = json.loads(bytes(row.request))
    except (ValueError, RecursionError):
        return {}
    return asked if isinstance(asked, dict) else {}


def _message(name: str, number: int, message: Any) -> JsonObject:
    said = message if isinstance(message, dict) else {}
    content = said.get("content")
    return {
        **said,
        "id": f"{name}-{number}",
        "role": said.get("role"),
        "content": content if isinstance(content, str) else None,
        "name": said.get("name"),
        "content_parts": content if isinstance(content, list) else None,
    }


def _place(after: str, shown: list[JsonObject]) -> int:
    """Where this message stands among them. Raises Invalid."""
    for place, message in enumerate(shown):
        if message["id"] == after:
            return place
    raise Invalid("`after` is the id of a message of this completion.", param="after")


def _after(session: Session, key_id: int) -> UUID | None:
    """The job of the completion that was seen last. Raises Invalid."""
    if "after" not in request.args:
        return None
    try:
        return UUID(str(_get(session, key_id, request.args["after"]).id))
    except NotFound as error:
        raise Invalid("`after` is the id of a stored completion of this key.", param="after") from error


def _is_ascending() -> bool:
    order = request.args.get("order", "asc")
    if order not in ("asc", "desc"):
        raise Invalid("`order` is asc or desc.", param="order")
    return order == "asc"


def _readable(name: str) -> str | None:
    """This parameter of the query. Raises Invalid for what no text in Postgres can be."""
    said = request.args.get(name)
    if said is not None and "\0" in said:
        raise Invalid(f"`{name}` has a NUL character in it.", param=name)
    return said


def _metadata_asked() -> dict[str, str]:
    """The pairs of `metadata[name]=value`. Raises Invalid."""
    pairs = {found[1]: value for name, value in request.args.items() if (found := _METADATA.fullmatch(name))}
    if "\0" in "".join([*pairs, *pairs.values()]):
        raise Invalid("`metadata` has a NUL character in it.", param="metadata")
    return schemas.check(Metadata, {"metadata": pairs}).metadata
