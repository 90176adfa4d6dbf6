"""The addresses of sessions."""

from __future__ import annotations

from functools import partial

from pydantic import BaseModel

from api.openai.routes import FORM
from api.openapi.route import JSON, Route, query
from api.sessions import responses as answers
from api.sessions import schemas as session_schemas
from models.platform.wire import JsonObject

PAGING = (
    query("limit", "How many on a page.", type="integer", minimum=1, maximum=100, default=20),
    query("after", "The last id of the page before.", type="string"),
)
ORDER = query("order", "Newest or oldest first.", type="string", enum=["desc", "asc"], default="desc")
SAID = (400, 401, 404, 408, 413, 415, 503)
_FILES: JsonObject = {
    "type": "object",
    "description": "One file or more: word, excel, ppt, pdf, zip, UTF-8 text, png, jpeg, gif or webp.",
    "required": ["file"],
    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
}

_route = partial(Route, tag="sessions")


def _json(body: type[BaseModel], **more: object) -> dict[str, JsonObject]:
    return {JSON: {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}, **more}}


ROUTES: tuple[Route, ...] = (
    _route(
        "post", "/v1/sessions", "createSession", "Make a session before its first turn",
        {201: ("The session.", JSON, answers.Session)},
        takes=_json(session_schemas.NewSession, example={"id": "tea", "system_prompt": "You know all about tea."}), refusals=(*SAID, 409),
    ),
    _route(
        "get", "/v1/sessions", "listSessions", "List your sessions, the one last active first",
        {200: ("One page.", JSON, answers.SessionList)}, parameters=PAGING,
    ),
    _route("get", "/v1/sessions/{id}", "getSession", "Look at a session", {200: ("The session.", JSON, answers.Session)}),
    _route(
        "patch", "/v1/sessions/{id}", "updateSession", "Change a session's title, system prompt or rules",
        {200: ("The session as it is now.", JSON, answers.Session)},
        takes=_json(session_schemas.SessionChange, example={"title": "Tea"}), refusals=SAID,
    ),
    _route(
        "delete", "/v1/sessions/{id}", "deleteSession", "Delete a session: what was asked and answered in it, its pictures and files",
        {200: ("It is gone; its jobs stay without their bodies, and what they used.", JSON, answers.SessionDeleted)},
    ),
    _route(
        "get", "/v1/sessions/{id}/messages", "listMessages", "Read a session's messages",
        {200: ("One page.", JSON, answers.SessionMessageList)}, parameters=(*PAGING, ORDER),
    ),
    _route(
        "delete", "/v1/sessions/{id}/messages/{message_name}", "deleteTurn", "Delete a turn that has ended",
        {200: ("It is gone, and not remembered; its job stays without its bodies, and what it used.", JSON, answers.TurnDeleted)},
        refusals=(400, 401, 404, 409, 503),
    ),
    _route(
        "post", "/v1/sessions/{id}/attachments", "attachFiles", "Send files that turns of a session can carry",
        {201: ("They are kept: a turn names their ids.", JSON, answers.AttachmentList)},
        takes={FORM: {"schema": _FILES}}, refusals=SAID,
    ),
)  # fmt: skip
