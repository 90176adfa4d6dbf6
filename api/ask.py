"""A request on one of the upstream's own routes, read: what is ordered, and by what it is recognised when it comes again."""

from __future__ import annotations

from dataclasses import dataclass

from flask import Request

from api import body, controls, form, orders, visitor
from models import endpoint as routes
from models.errors import NotFound
from models.key import Key
from models.line import Order

MODEL_ID_MOST = 200
# What stands for bytes of an address that are not UTF-8.
UNREADABLE = "\ufffd"


@dataclass(frozen=True)
class Ask:
    """order: ready to be accepted, without a reader. said: what must be the same when an Idempotency-Key, or a client's retry, comes
    again, whatever base path it came on. token: the Idempotency-Key."""

    order: Order
    said: bytes
    token: str | None


def read(request: Request, caller: Key, endpoint: str) -> Ask:
    """What this request asks for. endpoint: one of models.endpoint, or `/v1/models/<id>`.

    Raises Invalid and its kinds, with a message that says where and what to do.
    """
    line = f"{routes.method(endpoint)} {endpoint}\n".encode()
    if routes.method(endpoint) == "GET":
        _expect_model(endpoint)
        own, token, _ = controls.read(request.headers, {})
        return Ask(orders.listing(caller, endpoint, own=visitor.mark_controls(request, own)), line, token)
    sent = form.read(request) if endpoint == routes.EDITS and form.is_form(request) else body.sent(request)
    own, token, value = controls.read(request.headers, sent.value)
    return Ask(orders.direct(caller, endpoint, value, write=sent.written, own=own), line + sent.said, token)


def _expect_model(endpoint: str) -> None:
    """Raises NotFound for what is no model's id: with `..` in it, it might be another address of the upstream."""
    if endpoint == routes.MODELS:
        return
    name = endpoint.removeprefix(f"{routes.MODELS}/")
    is_plain = name.isprintable() and UNREADABLE not in name and len(name) <= MODEL_ID_MOST
    if not is_plain or not all(part.strip(".") for part in name.split("/")):
        raise NotFound("No such model. GET /v1/models lists those there are.", param="model", code="model_not_found")
