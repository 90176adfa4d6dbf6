"""Descriptions of the session routes for the OpenAPI document."""

from __future__ import annotations

from functools import partial

from api.openai.routes import FORM
from api.openapi.route import JSON, PAGING, Route, json_body, query
from api.sessions import responses as answers
from api.sessions import schemas as session_schemas
from models.platform.wire import JsonObject

ORDER = query("order", "Newest or oldest first.", type="string", enum=["desc", "asc"], default="desc")
REFUSALS = (400, 401, 404, 408, 413, 415, 503)
_FILES: JsonObject = {
    "type": "object",
    "description": "One or more files: word, excel, ppt, pdf, zip, UTF-8 text, png, jpeg, gif or webp.",
    "required": ["file"],
    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
}

_route = partial(Route, tag="sessions")


ROUTES: tuple[Route, ...] = (
    _route(
        "post", "/v1/sessions", "createSession", "Create a session before its first turn",
        {201: ("The session.", JSON, answers.Session)},
        body=json_body(session_schemas.NewSession, example={"id": "tea", "system_prompt": "You know all about tea."}),
        errors=(*REFUSALS, 409),
    ),
    _route(
        "get", "/v1/sessions", "listSessions", "List your sessions, the last active first",
        {200: ("One page.", JSON, answers.SessionList)}, parameters=PAGING,
    ),
    _route("get", "/v1/sessions/{id}", "getSession", "Retrieve a session", {200: ("The session.", JSON, answers.Session)}),
    _route(
        "patch", "/v1/sessions/{id}", "updateSession", "Change a session's title, system prompt or rules",
        {200: ("The changed session.", JSON, answers.Session)},
        body=json_body(session_schemas.SessionChange, example={"title": "Tea"}), errors=REFUSALS,
    ),
    _route(
        "delete", "/v1/sessions/{id}", "deleteSession", "Delete a session with its requests, answers, images and files",
        {200: ("Deleted. Its jobs stay without bodies; their usage stays.", JSON, answers.SessionDeleted)},
    ),
    _route(
        "get", "/v1/sessions/{id}/messages", "listMessages", "List a session's messages",
        {200: ("One page.", JSON, answers.SessionMessageList)}, parameters=(*PAGING, ORDER),
    ),
    _route(
        "delete", "/v1/sessions/{id}/messages/{message_name}", "deleteTurn", "Delete a turn that has ended",
        {200: ("Deleted from the session and its history. Its job stays without bodies; its usage stays.", JSON, answers.TurnDeleted)},
        errors=(400, 401, 404, 409, 503),
    ),
    _route(
        "post", "/v1/sessions/{id}/attachments", "attachFiles", "Upload files for the turns of a session",
        {201: ("The stored files: a turn names their ids.", JSON, answers.AttachmentList)},
        body={FORM: {"schema": _FILES}}, errors=REFUSALS,
    ),
)  # fmt: skip
