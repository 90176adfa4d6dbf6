"""A request on one of the upstream's own routes, read: what is ordered, and by what it is recognised when it comes again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from flask import Request
from werkzeug.datastructures import Headers

from api.http import forwarded_headers, request_body
from api.submit import build, image_form, options
from models.content import endpoints as routes
from models.keys.keys import Key
from models.queue.submission import Submission


@dataclass(frozen=True)
class ParsedRequest:
    """order: ready to be accepted, without a reader. digest: SHA-256 of all that must be the same when an Idempotency-Key, or a client's
    retry, comes again, whatever base path it came on. token: the Idempotency-Key."""

    order: Submission
    digest: bytes
    token: str | None


def parse(request: Request, caller: Key, endpoint: str, *, model: str | None = None) -> ParsedRequest:
    """What this request asks for. endpoint: one of models.content.endpoints. model: beats that of the body.

    Raises Invalid and its kinds, with a message that says where and what to do.
    """
    going = forwarded_headers.select_headers(request, caller)
    line = f"{routes.http_method(endpoint)} {endpoint}\n".encode() + forwarded_headers.fingerprint(going)
    then = partial(_ordered, caller, endpoint, line, request.headers, model=model)
    is_form = endpoint == routes.EDITS and image_form.is_form(request)
    asked = image_form.parse_form(request, then) if is_form else request_body.parse_json(request, then)
    return replace(asked, order=replace(asked.order, headers=going))


def _ordered(
    caller: Key, endpoint: str, line: bytes, headers: Headers, sent: request_body.JsonBody | image_form.Form, *, model: str | None
) -> ParsedRequest:
    own, token, value = options.parse(headers, sent.value)
    if model is not None and value.get("model") != model:
        value, line = {**value, "model": model}, line + f"model {model}\n".encode()
    return ParsedRequest(build.openai_order(caller, endpoint, value, write=sent.written, own=own), sent.digest(line), token)
