"""Parses a request to an OpenAI route: its submission, and the digest that identifies a repeated request."""

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
    """submission: of the job, without a reader. token: the Idempotency-Key.

    digest: SHA-256 of everything that is equal in a repeated request, with an Idempotency-Key or as an SDK's retry, on any base path.
    """

    submission: Submission
    digest: bytes
    token: str | None


def parse(request: Request, caller: Key, endpoint: str, *, model: str | None = None) -> ParsedRequest:
    """Parses this request. endpoint: one of models.content.endpoints. model: replaces the model in the body.

    Raises Invalid and its subclasses, with the place of the error and its cure.
    """
    forwarded = forwarded_headers.select_headers(request, caller)
    prefix = f"{routes.http_method(endpoint)} {endpoint}\n".encode() + forwarded_headers.fingerprint(forwarded)
    then = partial(_parse_body, caller, endpoint, prefix, request.headers, model=model)
    is_form = endpoint == routes.EDITS and image_form.is_form(request)
    parsed = image_form.parse_form(request, then) if is_form else request_body.parse_json(request, then)
    return replace(parsed, submission=replace(parsed.submission, headers=forwarded))


def _parse_body(
    caller: Key, endpoint: str, prefix: bytes, headers: Headers, body: request_body.JsonBody | image_form.Form, *, model: str | None
) -> ParsedRequest:
    controls, token, value = options.parse(headers, body.value)
    if model is not None and value.get("model") != model:
        value, prefix = {**value, "model": model}, prefix + f"model {model}\n".encode()
    submission = build.openai_submission(caller, endpoint, value, encode=body.encode, controls=controls)
    return ParsedRequest(submission, body.digest(prefix), token)
