"""Images in responses, as base64 or as links: the request to the upstream, and the response to the caller."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from flask import Request, Response

from api.http import render
from api.submit.image_stream import ResponseBody
from models.config.settings import settings
from models.content import artifacts, image_placeholders
from models.database import db
from models.jobs import job_view
from models.platform.errors import Invalid
from models.platform.wire import JsonObject

# These models of OpenAI always return base64 and refuse the field response_format with a 400.
BASE64_ONLY = ("gpt-image", "chatgpt-image")


def prepare(body: JsonObject) -> tuple[JsonObject, bool]:
    """The body for the upstream, and whether the caller wants links. body: of an images request, validated; returned as it is if unchanged.

    The links are ours and need the bytes of the images, so the upstream is asked for base64. Raises Invalid for links in a stream, whose
    events are sent before the images are stored.
    """
    response_format = body.get("response_format")
    if response_format == "url" and body.get("stream"):
        raise Invalid(
            "`response_format`: a stream has its pictures in its events, as base64. Leave `url` out, or do not stream.",
            param="response_format",
        )
    if "response_format" in body and response_format in ("url", "b64_json", None) and _is_base64_only(body.get("model")):
        body = {name: value for name, value in body.items() if name != "response_format"}
    elif response_format == "url":
        body = {**body, "response_format": "b64_json"}
    return body, response_format == "url"


def origin(request: Request) -> str:
    """The prefix of links: NOWSERVING_PUBLIC_URL, otherwise the address that this caller used.

    The scheme is https behind a proxy on this machine, or of NOWSERVING_TRUSTED_PROXIES, that sends X-Forwarded-Proto; the
    host is the Host header alone. A proxy that changes it needs NOWSERVING_PUBLIC_URL.
    """
    # werkzeug returns no host for an invalid Host header.
    return settings().public_url.rstrip("/") or (request.host_url.rstrip("/") if request.host else "")


def restore_images(response: Response, job_id: UUID) -> None:
    """Replaces the placeholders in this response by the job's images, which are read while they are sent."""
    body = _body(job_id, response.get_data())
    response.response, response.content_length = body, body.length


def response_body(row: Any, *, origin: str) -> ResponseBody:
    """The response body of a succeeded job: the bytes of the upstream, or with links if the caller asked for them.

    row: as view.find gives it; its `result` says the same.
    """
    answer = bytes(row.response)
    if row.wants_urls:
        with db.begin() as session:
            result = job_view.read_result(session, row, origin=origin)
        if isinstance(result, dict):
            return ResponseBody([render.dump(result).encode()])
    return _body(row.id, answer)


def _body(job_id: UUID, content: bytes) -> ResponseBody:
    if not image_placeholders.may_have_placeholders(content):
        return ResponseBody([content])
    with db.begin() as session:
        return ResponseBody(image_placeholders.split_at_placeholders(content, artifacts.by_job(session, job_id)))


def _is_base64_only(model: object) -> bool:
    """Also true without a model: OpenAI chooses one of its own. Some servers put a vendor and a slash before the name."""
    return not model or str(model).rpartition("/")[2].startswith(BASE64_ONLY)
