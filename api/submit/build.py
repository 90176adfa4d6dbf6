"""Builds the submission of a job from a validated request: flow, reservation, and the bytes for the upstream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from api.http import json_text
from api.submit import images, openai_requests, options, reserve_estimate, schemas
from api.submit.openai_requests import KINDS, Upstream
from api.submit.schemas import Controls
from models.config.settings import settings
from models.content import attachments, chat_messages, token_estimate
from models.content import endpoints as routes
from models.content.endpoints import CHAT, EDITS, IMAGES
from models.jobs.states import Status
from models.keys.keys import Key
from models.platform.errors import Invalid, WrongState
from models.platform.wire import JsonObject
from models.queue.submission import Submission

# The flow of requests that name no user: all of them share one flow of the key.
KEY_FLOW = "key"
RETRYABLE = frozenset({Status.FAILED, Status.CANCELLED, Status.EXPIRED})
# The columns of a job that its retry takes over unchanged.
RETRIED = (
    "endpoint", "model", "flow", "tokens", "images", "reserved_microusd", "priority", "conversation", "expires_in_s", "timeout_s",
    "on_lost", "on_unreadable", "max_attempts", "metadata", "webhook_url", "content_type", "streamed", "wants_urls", "turn_tokens",
)  # fmt: skip
# Returns the body with this value, and its media type (None: JSON).
Encode = Callable[[JsonObject], tuple[bytes, str | None]]


def encode_json(value: JsonObject) -> tuple[bytes, None]:
    """The Encode of JSON bodies."""
    return json_text.dump(value), None


def job_submission(caller: Key, payload: JsonObject) -> Submission:
    """The submission in this body of POST /v1/jobs. Raises Invalid."""
    json_text.check_storable({name: value for name, value in payload.items() if name != "body"})
    params = schemas.parse_submit(payload)
    if options.BODY_FIELD in payload["body"]:
        raise Invalid(f"`body.{options.BODY_FIELD}`: a job says this beside its `body`, not inside.", param=f"body.{options.BODY_FIELD}")
    return _build(caller, params.endpoint, params.body, payload["body"], encode=encode_json, controls=params)


def openai_submission(caller: Key, endpoint: str, value: JsonObject, *, encode: Encode, controls: Controls) -> Submission:
    """The submission of a request to an OpenAI route. value: its body without our controls. Raises Invalid."""
    return _build(caller, endpoint, schemas.validate(KINDS[endpoint], value), value, encode=encode, controls=controls)


def retry_submission(caller: Key, job: Any, *, retry_of: UUID) -> Submission:
    """The submission of the same job again, with its full `expires_in_s`. job: a row of job_rows.find_submission.

    Raises WrongState for a job that has not ended, or has succeeded, or whose request was deleted.
    """
    if job.status not in RETRYABLE:
        raise WrongState("Only a job that failed, was cancelled or has expired can be tried again. Submit a new one instead.")
    # A GET has no body at any time.
    if not job.request and routes.http_method(job.endpoint) == "POST":
        raise WrongState("The request of this job was deleted with its session. Submit a new one instead.")
    return Submission(
        key=caller,
        request=bytes(job.request),
        retry_of=retry_of,
        # Without the Idempotency-Key: an upstream that knows it would repeat its old response.
        headers={name: value for name, value in (job.headers or {}).items() if name != "idempotency-key"} or None,
        attachments=tuple(job.attachments or ()),
        **{name: getattr(job, name) for name in RETRIED},
    )


def _build(caller: Key, endpoint: str, params: Upstream, value: JsonObject, *, encode: Encode, controls: Controls) -> Submission:
    if controls.attachments and (controls.conversation is None or endpoint != CHAT):
        raise Invalid("`attachments` go with a chat that names its `conversation`, to which they were sent.", param="attachments")
    countable = openai_requests.countable(endpoint, value)
    reserve = reserve_estimate.estimate(endpoint, countable)
    upstream_value, wants_urls = _upstream_body(endpoint, value)
    request, content_type = encode(upstream_value)
    model = upstream_value.get("model") or params.lane
    history_tokens = settings().session_context_tokens if controls.conversation and endpoint == CHAT else 0
    return Submission(
        key=caller,
        endpoint=endpoint,
        model=model,
        request=request,
        flow=controls.user or params.flow or controls.conversation or KEY_FLOW,
        tokens=reserve.tokens,
        images=reserve.images,
        reserved_microusd=reserve_estimate.max_microusd(caller.kind, endpoint, model, reserve, history_tokens=history_tokens),
        content_type=content_type,
        streamed=params.is_streamed,
        wants_urls=wants_urls,
        turn_tokens=_turn_tokens(endpoint, countable, model) if controls.conversation else None,
        **_terms(controls),
    )


def _turn_tokens(endpoint: str, value: JsonObject, model: str) -> int | None:
    messages = chat_messages.request_messages(endpoint, value)
    return token_estimate.estimate_messages(messages, model=model) if messages else None


def _upstream_body(endpoint: str, value: JsonObject) -> tuple[JsonObject, bool]:
    """The body for the upstream, `value` itself if unchanged, and whether the caller wants links to images."""
    if endpoint not in (IMAGES, EDITS):
        return value, False
    if not value.get("model") and settings().default_image_model:
        value = {**value, "model": settings().default_image_model}
    return images.prepare(value)


def _terms(controls: Controls) -> dict[str, Any]:
    return {
        "priority": controls.priority,
        "conversation": controls.conversation,
        "expires_in_s": controls.expires_in_s or settings().default_expires_in_s,
        "timeout_s": controls.timeout_s or settings().default_timeout_s,
        "on_lost": controls.on_lost,
        "on_unreadable": controls.on_unreadable,
        "max_attempts": controls.max_attempts or settings().max_attempts,
        "metadata": controls.metadata or None,
        "attachments": tuple(dict.fromkeys(attachments.parse_id(name) for name in controls.attachments or ())),
        "webhook_url": controls.webhook_url,
    }
