"""Finds the upstream's words in the body of an error, whatever shape they have, and puts them into the wire contract's four keys.

Known shapes: OpenAI's and Gemini's `{"error": {…}}`, `error` as text, vLLM's flat one, FastAPI's `detail`, `errors`, RFC 9457's
`title` and `detail`, any of them in a list, and plain text and pages of proxies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from models.platform import json_reading
from workers.answers.error_text import FIELD_BYTES, MESSAGE_BYTES, cut, moved, plain_words
from workers.upstream import answer_body

ErrorObject = dict[str, object]
# The code of an error that the upstream itself gave no name: a page of a proxy, a redirect, an empty body.
UNNAMED = "upstream_error"
MAX_FIELDS = 16
_DEPTH_MOST = 6
# Where other servers put their words, the best first. `title` and `detail` belong together.
_WORDS = ("message", "detail", "msg", "error_description", "error_message", "errorMessage", "Message", "description", "reason",
          "faultstring", "statusMessage", "title")  # fmt: skip
_INNER = ("error", "errors", "fault", "Error")
_NO_FIELDS = frozenset({*_WORDS, *_INNER, "object"})
# What the code or the type of an error in an answer of status 200 would have been as a status; numbers stand for themselves.
_STATUSES = {
    **dict.fromkeys(("invalid_request_error", "context_length_exceeded", "content_policy_violation", "invalid_argument"), 400),
    **dict.fromkeys(("permission_error", "permission_denied"), 403),
    **dict.fromkeys(("not_found_error", "model_not_found", "not_found"), 404),
    **dict.fromkeys(("request_too_large",), 413),
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error", "slow_down", "too_many_requests", "resource_exhausted"), 429),
    **dict.fromkeys(("overloaded_error", "server_is_overloaded", "engine_overloaded", "unavailable"), 503),
}
# As OpenAI names them; 403 and 429 as Anthropic does, for OpenAI's own types of those name the limit or nothing.
_TYPES = {403: "permission_error", 429: "rate_limit_error"}


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> ErrorObject:
    """The error in this answer, with the upstream's words, safe for jsonb and at most a few kB long."""
    content_type = headers.get("content-type", "")
    found = find_error(body, content_type)
    if found is None and 300 <= status < 400:
        return own_error(moved(status, headers.get("location", "")), status)
    if found is None:
        words = plain_words(body, content_type)
        return own_error(f"The upstream answered {status}: {words}" if words else _silent(status), status)
    return with_all_fields(found, status)


def find_error(body: bytes, content_type: str = "") -> ErrorObject | None:
    """What a JSON body says of its error: `message` and the fields beside it, without those that are missing. None: it says nothing."""
    said = json_reading.value(body)
    if said is None and not body.isascii():
        said = json_reading.value(answer_body.decode(body, content_type).encode())
    return _in_value(said, depth=0)


def is_error(said: Mapping[str, Any]) -> bool:
    """Whether this JSON object, which came with a good status, is an error all the same. An answer with content is none."""
    return (bool(said.get("error")) or said.get("object") == "error") and not _has_content(said)


def status_of(said: Mapping[str, Any], *, money: frozenset[str] = frozenset()) -> int:
    """The status that an error in an answer of status 200 means. money: codes and types of an account without any.

    One that says 401 is a 500: the key has just been accepted.
    """
    found = _in_value(said, depth=0) or {}
    return max((_status(found.get(name), money) for name in ("code", "type", "status")), default=0) or 500


def _status(name: object, money: frozenset[str]) -> int:
    """0: it names none."""
    text = str(name).lower() if isinstance(name, str | int) else ""
    if text in money:
        return 429
    if re.fullmatch(r"[45][0-9]{2}", text) and text != "401":
        return int(text)
    return _STATUSES.get(text, 0)


def with_all_fields(found: ErrorObject, status: int) -> ErrorObject:
    """The four keys. A missing type is that of the status."""
    named = found.get("type")
    return {"param": None, "code": None, **found, "type": named if isinstance(named, str) and named else type_of(status)}


def own_error(message: str, status: int) -> ErrorObject:
    """An error in our words, or in those of a page."""
    return {"message": cut(message, MESSAGE_BYTES), "type": type_of(status), "param": None, "code": UNNAMED}


def type_of(status: int) -> str:
    """The `type` of an error with this status."""
    return _TYPES.get(status, "invalid_request_error" if 400 <= status < 500 else "server_error")


def _in_value(value: Any, *, depth: int) -> ErrorObject | None:
    if depth > _DEPTH_MOST:
        return None
    if isinstance(value, str):
        return {"message": cut(value.strip(), MESSAGE_BYTES)} if value.strip() else None
    if isinstance(value, list):
        return _in_list(value, depth=depth)
    return _in_object(value, depth=depth) if isinstance(value, dict) else None


def _in_object(value: Mapping[str, Any], *, depth: int) -> ErrorObject | None:
    for name in _INNER:
        if value.get(name) and (found := _in_value(value[name], depth=depth + 1)):
            # `{"error": "not_found", "message": "No such model."}`: the short one is the code.
            if isinstance(value[name], str) and (longer := _words(value, depth=depth)):
                return {**_fields(value), "code": found["message"], **longer}
            return {**_beside(value), **found}
    words = _words(value, depth=depth)
    return {**_fields(value), **words} if words else None


def _words(value: Mapping[str, Any], *, depth: int) -> ErrorObject | None:
    found = next((found for name in _WORDS if value.get(name) and (found := _in_value(value[name], depth=depth + 1))), None)
    title, detail = value.get("title"), value.get("detail")
    if found and isinstance(title, str) and isinstance(detail, str) and "message" not in value:
        return {**found, "message": cut(f"{title}: {detail}", MESSAGE_BYTES)}
    return found


def _in_list(value: list[Any], *, depth: int) -> ErrorObject | None:
    found = [one for entry in value[:MAX_FIELDS] if (one := _in_entry(entry, depth=depth + 1))]
    if len(found) < 2:
        return found[0] if found else None
    return {**found[0], "message": cut("; ".join(str(one["message"]) for one in found), MESSAGE_BYTES)}


def _in_entry(entry: Any, *, depth: int) -> ErrorObject | None:
    """One of several: of FastAPI's, `loc` is where in the request it is."""
    found = _in_value(entry, depth=depth)
    loc = entry.get("loc") if isinstance(entry, dict) else None
    if found is None or not isinstance(loc, list):
        return found
    path = cut(".".join(str(step) for step in loc[:MAX_FIELDS] if step != "body"), FIELD_BYTES)
    message = f"{path}: {found['message']}" if path else str(found["message"])
    return {"message": cut(message, MESSAGE_BYTES), "param": path or None}


def _fields(value: Mapping[str, Any]) -> ErrorObject:
    """The plain fields of the object that holds the words, without those."""
    plain = [(name, one) for name, one in value.items() if one is None or isinstance(one, str | bool | int)]
    return {cut(name, FIELD_BYTES): _short(one) for name, one in plain[:MAX_FIELDS] if name not in _NO_FIELDS}


def _beside(value: Mapping[str, Any]) -> ErrorObject:
    """The four keys, where they stand beside `error` instead of in it."""
    return {name: _short(value[name]) for name in ("type", "param", "code") if isinstance(value.get(name), str | int)}


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return cut(value, FIELD_BYTES)
    return value if value is None or abs(value) < 2**63 else None


def _has_content(said: Mapping[str, Any]) -> bool:
    choices = said.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message") if isinstance(choice, dict) else None
        if isinstance(message, dict) and any(message.get(name) for name in ("content", "tool_calls", "refusal", "function_call", "audio")):
            return True
    return any(isinstance(said.get(name), list) and said[name] for name in ("data", "results"))


def _silent(status: int) -> str:
    return f"The upstream answered {status} without saying why. Try again later, or ask the operator to look at the upstream's own logs."
