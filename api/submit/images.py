"""Pictures as a caller may want them, as base64 or as links: what the upstream is asked for, and what its answer becomes."""

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

# OpenAI's own models answer base64 always and refuse the field with a 400, whatever it says.
BASE64_ONLY = ("gpt-image", "chatgpt-image")


def prepare(body: JsonObject) -> tuple[JsonObject, bool]:
    """What the upstream is to be asked, and whether the caller wants links. body: of an images request, validated; given back as it is
    when nothing changes.

    Links are ours, made of the bytes, so the upstream is asked for those. Raises Invalid for links in a stream, whose events are on
    their way before anything is stored.
    """
    wanted = body.get("response_format")
    if wanted == "url" and body.get("stream"):
        raise Invalid(
            "`response_format`: a stream has its pictures in its events, as base64. Leave `url` out, or do not stream.",
            param="response_format",
        )
    if "response_format" in body and wanted in ("url", "b64_json", None) and _is_base64_only(body.get("model")):
        body = {name: value for name, value in body.items() if name != "response_format"}
    elif wanted == "url":
        body = {**body, "response_format": "b64_json"}
    return body, wanted == "url"


def origin(request: Request) -> str:
    """What links begin with: NOWSERVING_PUBLIC_URL, else the address by which this caller reached us.

    The scheme is https behind a proxy on this machine, or of NOWSERVING_TRUSTED_PROXIES, that sends X-Forwarded-Proto; the
    host is the Host header alone. A proxy that changes it needs NOWSERVING_PUBLIC_URL.
    """
    # werkzeug gives no host where the header is none.
    return settings().public_url.rstrip("/") or (request.host_url.rstrip("/") if request.host else "")


def restore_images(made: Response, job_id: UUID) -> None:
    """The pictures of this job whose marks are in the answer go out with it, read while it is sent."""
    body = _body(job_id, made.get_data())
    made.response, made.content_length = body, body.length


def response_body(row: Any, *, origin: str) -> ResponseBody:
    """The body of a succeeded job's answer: to the byte what the upstream sent, or with links where they were asked for.

    row: as view.find gives it; its `result` says the same.
    """
    answer = bytes(row.response)
    if row.wants_urls:
        with db.begin() as session:
            said = job_view.read_result(session, row, origin=origin)
        if isinstance(said, dict):
            return ResponseBody([render.dump(said).encode()])
    return _body(row.id, answer)


def _body(job_id: UUID, content: bytes) -> ResponseBody:
    if not image_placeholders.may_have_placeholders(content):
        return ResponseBody([content])
    with db.begin() as session:
        return ResponseBody(image_placeholders.split_at_placeholders(content, artifacts.by_job(session, job_id)))


def _is_base64_only(model: object) -> bool:
    """Of no model too: OpenAI's own choice is one of its own. Some servers put a maker's name and a slash before it."""
    return not model or str(model).rpartition("/")[2].startswith(BASE64_ONLY)
