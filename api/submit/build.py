"""From what a caller sent to an order for the line: who waits, what is reserved, which bytes go to the upstream."""

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

# Who waits when nobody is named: everything this key sends is one flow.
KEY_FLOW = "key"
REPEATABLE = frozenset({Status.FAILED, Status.CANCELLED, Status.EXPIRED})
# The body that says this, and its media type (None: JSON).
Write = Callable[[JsonObject], tuple[bytes, str | None]]


def job_order(caller: Key, payload: JsonObject) -> Submission:
    """The order in this payload of POST /v1/jobs. Raises Invalid."""
    json_text.check_storable({name: value for name, value in payload.items() if name != "body"})
    wanted = schemas.parse_submit(payload)
    if options.BODY_FIELD in payload["body"]:
        raise Invalid(f"`body.{options.BODY_FIELD}`: a job says this beside its `body`, not inside.", param=f"body.{options.BODY_FIELD}")
    return _order(caller, wanted.endpoint, wanted.body, payload["body"], write=lambda value: (json_text.dump(value), None), own=wanted)


def openai_order(caller: Key, endpoint: str, value: JsonObject, *, write: Write, own: Controls) -> Submission:
    """The order of a request that came on the upstream's own route. value: its body, without our controls; write: writes it again.

    Raises Invalid.
    """
    return _order(caller, endpoint, schemas.validate(KINDS[endpoint], value), value, write=write, own=own)


def _order(caller: Key, endpoint: str, wanted: Upstream, value: JsonObject, *, write: Write, own: Controls) -> Submission:
    if own.attachments and (own.conversation is None or endpoint != CHAT):
        raise Invalid("`attachments` go with a chat that names its `conversation`, to which they were sent.", param="attachments")
    counted = openai_requests.countable(endpoint, value)
    reserve = reserve_estimate.estimate(endpoint, counted)
    going, wants_urls = _outgoing(endpoint, value)
    request, content_type = write(going)
    model = going.get("model") or wanted.lane
    remembered = settings().session_context_tokens if own.conversation and endpoint == CHAT else 0
    return Submission(
        key=caller,
        endpoint=endpoint,
        model=model,
        request=request,
        flow=own.user or wanted.flow or own.conversation or KEY_FLOW,
        tokens=reserve.tokens,
        images=reserve.images,
        reserved_microusd=reserve_estimate.max_microusd(caller.kind, endpoint, model, reserve, remembered=remembered),
        content_type=content_type,
        streamed=wanted.is_streamed,
        wants_urls=wants_urls,
        turn_tokens=_turn_tokens(endpoint, counted, model) if own.conversation else None,
        **_terms(own),
    )


def _turn_tokens(endpoint: str, value: JsonObject, model: str) -> int | None:
    asked = chat_messages.request_messages(endpoint, value)
    return token_estimate.estimate_messages(asked, model=model) if asked else None


def _attachments(own: Controls) -> tuple[UUID, ...]:
    return tuple(dict.fromkeys(attachments.parse_id(name) for name in own.attachments or ()))


def _outgoing(endpoint: str, value: JsonObject) -> tuple[JsonObject, bool]:
    """What the upstream is to be told, and whether the caller wants its pictures as links. `value` itself when nothing changes."""
    if endpoint not in (IMAGES, EDITS):
        return value, False
    if not value.get("model") and settings().default_image_model:
        value = {**value, "model": settings().default_image_model}
    return images.prepare(value)


def _terms(own: Controls) -> dict[str, Any]:
    return {
        "priority": own.priority,
        "conversation": own.conversation,
        "expires_in_s": own.expires_in_s or settings().default_expires_in_s,
        "timeout_s": own.timeout_s or settings().default_timeout_s,
        "on_lost": own.on_lost,
        "on_unreadable": own.on_unreadable,
        "max_attempts": own.max_attempts or settings().max_attempts,
        "metadata": own.metadata or None,
        "attachments": _attachments(own),
        "webhook_url": own.webhook_url,
    }


def retry_order(caller: Key, ended: Any, *, retry_of: UUID) -> Submission:
    """The same order once more, with its whole time to wait. ended: a row of view.find_order.

    Raises WrongState when the job has not ended without success, or its request was deleted.
    """
    if ended.status not in REPEATABLE:
        raise WrongState("Only a job that failed, was cancelled or has expired can be tried again. Submit a new one instead.")
    # A GET has no body, and never had one.
    if not ended.request and routes.http_method(ended.endpoint) == "POST":
        raise WrongState("The request of this job was deleted with its session. Submit a new one instead.")
    return Submission(
        key=caller,
        endpoint=ended.endpoint,
        model=ended.model,
        request=bytes(ended.request),
        flow=ended.flow,
        tokens=ended.tokens,
        images=ended.images,
        reserved_microusd=ended.reserved_microusd,
        priority=ended.priority,
        conversation=ended.conversation,
        expires_in_s=ended.expires_in_s,
        timeout_s=ended.timeout_s,
        on_lost=ended.on_lost,
        on_unreadable=ended.on_unreadable,
        max_attempts=ended.max_attempts,
        metadata=ended.metadata,
        webhook_url=ended.webhook_url,
        retry_of=retry_of,
        content_type=ended.content_type,
        # Called again means called again: an upstream that knows the key would answer as before.
        headers={name: value for name, value in (ended.headers or {}).items() if name != "idempotency-key"} or None,
        streamed=ended.streamed,
        wants_urls=ended.wants_urls,
        attachments=tuple(ended.attachments or ()),
        turn_tokens=ended.turn_tokens,
    )
