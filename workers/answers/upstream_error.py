"""Finds the upstream's message in the body of an error, in any known shape, and normalises it to the wire contract's four fields.

Known shapes: OpenAI's and Gemini's `{"error": {…}}`, `error` as text, vLLM's flat one, FastAPI's `detail`, `errors`, RFC 9457's
`title` and `detail`, any of them in a list, and plain text and pages of proxies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from models.platform import json_reading
from workers.answers.error_text import FIELD_BYTES, MESSAGE_BYTES, cut, redirect_message, visible_text
from workers.upstream import answer_body

ErrorObject = dict[str, object]
# The code of an error without one: a proxy's page, a redirect, an empty body.
UNNAMED = "upstream_error"
MAX_FIELDS = 16
_MAX_DEPTH = 6
# The fields in which servers send the message, the best first. `title` and `detail` belong together.
_MESSAGE_FIELDS = ("message", "detail", "msg", "error_description", "error_message", "errorMessage", "Message", "description", "reason",
          "faultstring", "statusMessage", "title")  # fmt: skip
_ERROR_FIELDS = ("error", "errors", "fault", "Error")
_SKIPPED_FIELDS = frozenset({*_MESSAGE_FIELDS, *_ERROR_FIELDS, "object"})
# The status for the code or type of an error in an answer with status 200; numbers are statuses themselves.
_STATUSES = {
    **dict.fromkeys(("invalid_request_error", "context_length_exceeded", "content_policy_violation", "invalid_argument"), 400),
    **dict.fromkeys(("permission_error", "permission_denied"), 403),
    **dict.fromkeys(("not_found_error", "model_not_found", "not_found"), 404),
    **dict.fromkeys(("request_too_large",), 413),
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error", "slow_down", "too_many_requests", "resource_exhausted"), 429),
    **dict.fromkeys(("overloaded_error", "server_is_overloaded", "engine_overloaded", "unavailable"), 503),
}
# OpenAI's type names; for 403 and 429 Anthropic's, because OpenAI's types name the limit or are missing there.
_TYPES = {403: "permission_error", 429: "rate_limit_error"}


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> ErrorObject:
    """The error in this answer with the upstream's message, valid for jsonb and at most a few kB long."""
    content_type = headers.get("content-type", "")
    found = find_error(body, content_type)
    if found is None and 300 <= status < 400:
        return own_error(redirect_message(status, headers.get("location", "")), status)
    if found is None:
        text = visible_text(body, content_type)
        return own_error(f"The upstream answered {status}: {text}" if text else _without_reason(status), status)
    return with_all_fields(found, status)


def find_error(body: bytes, content_type: str = "") -> ErrorObject | None:
    """The `message` of a JSON body and the fields beside it, as far as there are any. None: no message."""
    value = json_reading.parse_json(body)
    if value is None and not body.isascii():
        value = json_reading.parse_json(answer_body.decode(body, content_type).encode())
    return _in_value(value, depth=0)


def is_error(content: Mapping[str, Any]) -> bool:
    """Whether this JSON object, which came with a good status, is an error. An answer with content is none."""
    return (bool(content.get("error")) or content.get("object") == "error") and not _has_content(content)


def status_of(content: Mapping[str, Any], *, money: frozenset[str] = frozenset()) -> int:
    """The status of an error in an answer with status 200. money: codes and types of an account without money.

    A 401 counts as 500, because the upstream has just accepted the key.
    """
    found = _in_value(content, depth=0) or {}
    return max((_status(found.get(name), money) for name in ("code", "type", "status")), default=0) or 500


def _status(name: object, money: frozenset[str]) -> int:
    """The status for one code or type; 0: unknown."""
    text = str(name).lower() if isinstance(name, str | int) else ""
    if text in money:
        return 429
    if re.fullmatch(r"[45][0-9]{2}", text) and text != "401":
        return int(text)
    return _STATUSES.get(text, 0)


def with_all_fields(found: ErrorObject, status: int) -> ErrorObject:
    """The error with all four fields. A missing type is derived from the status."""
    error_type = found.get("type")
    return {"param": None, "code": None, **found, "type": error_type if isinstance(error_type, str) and error_type else type_of(status)}


def own_error(message: str, status: int) -> ErrorObject:
    """An error with a message of this server, or of a page."""
    return {"message": cut(message, MESSAGE_BYTES), "type": type_of(status), "param": None, "code": UNNAMED}


def type_of(status: int) -> str:
    """The `type` of an error with this status."""
    return _TYPES.get(status, "invalid_request_error" if 400 <= status < 500 else "server_error")


def _in_value(value: Any, *, depth: int) -> ErrorObject | None:
    if depth > _MAX_DEPTH:
        return None
    if isinstance(value, str):
        return {"message": cut(value.strip(), MESSAGE_BYTES)} if value.strip() else None
    if isinstance(value, list):
        return _in_list(value, depth=depth)
    return _in_object(value, depth=depth) if isinstance(value, dict) else None


def _in_object(value: Mapping[str, Any], *, depth: int) -> ErrorObject | None:
    for name in _ERROR_FIELDS:
        if value.get(name) and (found := _in_value(value[name], depth=depth + 1)):
            # In `{"error": "not_found", "message": "No such model."}` the short text is the code.
            if isinstance(value[name], str) and (longer := _message(value, depth=depth)):
                return {**_fields(value), "code": found["message"], **longer}
            return {**_beside(value), **found}
    words = _message(value, depth=depth)
    return {**_fields(value), **words} if words else None


def _message(value: Mapping[str, Any], *, depth: int) -> ErrorObject | None:
    found = next((found for name in _MESSAGE_FIELDS if value.get(name) and (found := _in_value(value[name], depth=depth + 1))), None)
    title, detail = value.get("title"), value.get("detail")
    if found and isinstance(title, str) and isinstance(detail, str) and "message" not in value:
        return {**found, "message": cut(f"{title}: {detail}", MESSAGE_BYTES)}
    return found


def _in_list(value: list[Any], *, depth: int) -> ErrorObject | None:
    found = [error for entry in value[:MAX_FIELDS] if (error := _in_entry(entry, depth=depth + 1))]
    if len(found) < 2:
        return found[0] if found else None
    return {**found[0], "message": cut("; ".join(str(error["message"]) for error in found), MESSAGE_BYTES)}


def _in_entry(entry: Any, *, depth: int) -> ErrorObject | None:
    """One of several errors. In FastAPI's, `loc` is the path in the request."""
    found = _in_value(entry, depth=depth)
    loc = entry.get("loc") if isinstance(entry, dict) else None
    if found is None or not isinstance(loc, list):
        return found
    path = cut(".".join(str(step) for step in loc[:MAX_FIELDS] if step != "body"), FIELD_BYTES)
    message = f"{path}: {found['message']}" if path else str(found["message"])
    return {"message": cut(message, MESSAGE_BYTES), "param": path or None}


def _fields(value: Mapping[str, Any]) -> ErrorObject:
    """The scalar fields beside the message."""
    scalars = [(name, field) for name, field in value.items() if field is None or isinstance(field, str | bool | int)]
    return {cut(name, FIELD_BYTES): _short(field) for name, field in scalars[:MAX_FIELDS] if name not in _SKIPPED_FIELDS}


def _beside(value: Mapping[str, Any]) -> ErrorObject:
    """type, param and code, where they stand beside `error` instead of in it."""
    return {name: _short(value[name]) for name in ("type", "param", "code") if isinstance(value.get(name), str | int)}


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return cut(value, FIELD_BYTES)
    return value if value is None or abs(value) < 2**63 else None


def _has_content(content: Mapping[str, Any]) -> bool:
    choices = content.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message") if isinstance(choice, dict) else None
        if isinstance(message, dict) and any(message.get(name) for name in ("content", "tool_calls", "refusal", "function_call", "audio")):
            return True
    return any(isinstance(content.get(name), list) and content[name] for name in ("data", "results"))


def _without_reason(status: int) -> str:
    return f"The upstream answered {status} without saying why. Try again later, or ask the operator to look at the upstream's own logs."
