"""OpenAI's routes of stored chat completions: list, retrieve, update, delete, messages.

They are served from our own jobs, for the key that stored them. The upstream is not called.
"""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import UUID

from flask import Blueprint, Response, request

from api.access import auth
from api.http import paging, render, request_body
from api.stored.schemas import CompletionChange, Metadata
from api.submit import schemas
from models.content.endpoints import CHAT
from models.database import db
from models.database.db import Transaction
from models.jobs import job_view
from models.platform.errors import Invalid, NotFound
from models.platform.wire import JsonObject
from models.sessions import stored_completions

routes = Blueprint("stored_completions", __name__)

_METADATA = re.compile(r"metadata\[([^\]]*)\]")
# Members of the request that OpenAI adds to a stored completion.
_REQUEST_MEMBERS = ("tool_choice", "seed", "top_p", "temperature", "presence_penalty", "frequency_penalty", "tools", "response_format")


@routes.get("/chat/completions")
def listing() -> Response:
    """Lists this key's stored completions, oldest first unless `order=desc`."""
    caller, limit, is_ascending = auth.authenticate(request), paging.parse_limit(), _is_ascending()
    model, metadata = _text_param("model"), _metadata_filter()
    with db.autocommit() as session:
        rows = stored_completions.list_completions(
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
    return paging.list_response(shown, has_more=len(rows) > limit)


@routes.get("/chat/completions/<name>")
def retrieve(name: str) -> Response:
    """Returns a stored completion with its metadata."""
    caller = auth.authenticate(request)
    with db.autocommit() as session:
        shown = _show(session, _get(session, caller.id, name))
    return render.json_response(shown)


@routes.post("/chat/completions/<name>")
def update(name: str) -> Response:
    """Replaces the metadata of a stored completion."""
    caller = auth.authenticate(request)
    change = schemas.validate(CompletionChange, request_body.read_json(request))
    with db.begin() as session:
        stored_completions.set_metadata(session, caller.id, CHAT, _parse(name), change.metadata or {})
        shown = _show(session, _get(session, caller.id, name))
    return render.json_response(shown)


@routes.delete("/chat/completions/<name>")
def delete(name: str) -> Response:
    """Deletes a stored completion with the bodies of its job. Its usage stays."""
    caller = auth.authenticate(request)
    with db.begin() as session:
        stored_completions.delete(session, caller.id, CHAT, _parse(name))
    return render.json_response({"object": "chat.completion.deleted", "id": name, "deleted": True})


@routes.get("/chat/completions/<name>/messages")
def messages(name: str) -> Response:
    """Lists the messages of the request, in their order unless `order=desc`."""
    caller, limit, is_ascending = auth.authenticate(request), paging.parse_limit(), _is_ascending()
    with db.autocommit() as session:
        sent = _request_body(_get(session, caller.id, name)).get("messages")
    shown = [_message(name, number, message) for number, message in enumerate(sent if isinstance(sent, list) else [])]
    shown = shown if is_ascending else shown[::-1]
    if (after := request.args.get("after")) is not None:
        shown = shown[_index_of(after, shown) + 1 :]
    return paging.list_response(shown[:limit], has_more=len(shown) > limit)


def _get(session: Transaction, key_id: int, name: str) -> Any:
    return stored_completions.get(session, key_id, CHAT, _parse(name))


def _parse(name: str) -> str:
    if not stored_completions.is_answer_id(name):
        raise NotFound(stored_completions.NOT_STORED, param="completion_id")
    return name


def _show(session: Transaction, row: Any) -> JsonObject:
    """Returns the upstream's answer, its current metadata, and the members of the request that OpenAI adds."""
    body_sent, answer = _request_body(row), job_view.read_result(session, row)
    about = {name: body_sent.get(name) for name in _REQUEST_MEMBERS}
    members = answer if isinstance(answer, dict) else {}
    about |= {"input_user": body_sent.get("user"), "request_id": row.upstream_request_id}
    return {**about, **members, "id": row.answer_id, "metadata": row.answer_metadata}


def _request_body(row: Any) -> JsonObject:
    try:
        value = json.loads(bytes(row.request))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _message(name: str, number: int, message: Any) -> JsonObject:
    members = message if isinstance(message, dict) else {}
    content = members.get("content")
    return {
        **members,
        "id": f"{name}-{number}",
        "role": members.get("role"),
        "content": content if isinstance(content, str) else None,
        "name": members.get("name"),
        "content_parts": content if isinstance(content, list) else None,
    }


def _index_of(after: str, shown: list[JsonObject]) -> int:
    """Returns the index of the message with this id. Raises Invalid."""
    for index, message in enumerate(shown):
        if message["id"] == after:
            return index
    raise Invalid("`after` is the id of a message of this completion.", param="after")


def _after(session: Transaction, key_id: int) -> UUID | None:
    """Returns the job of the `after` completion. Raises Invalid."""
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


def _text_param(name: str) -> str | None:
    """Returns a query parameter. Raises Invalid for NUL, which Postgres text cannot hold."""
    value = request.args.get(name)
    if value is not None and "\0" in value:
        raise Invalid(f"`{name}` contains a NUL character. Send it without.", param=name)
    return value


def _metadata_filter() -> dict[str, str]:
    """Returns the pairs of `metadata[name]=value`. Raises Invalid."""
    pairs = {match[1]: value for name, value in request.args.items() if (match := _METADATA.fullmatch(name))}
    if "\0" in "".join([*pairs, *pairs.values()]):
        raise Invalid("`metadata` contains a NUL character. Send it without.", param="metadata")
    return schemas.validate(Metadata, {"metadata": pairs}).metadata
