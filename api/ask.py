"""A request on one of the upstream's own routes, read: what is ordered, and by what it is recognised when it comes again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import partial

from flask import Request
from werkzeug.datastructures import Headers

from api import body, controls, form, forwarded, orders, visitor
from models import endpoint as routes
from models.errors import NotFound
from models.key import Key
from models.line import Order

MODEL_ID_MOST = 200
# What stands for bytes of an address that are not UTF-8.
UNREADABLE = "\ufffd"


@dataclass(frozen=True)
class Ask:
    """order: ready to be accepted, without a reader. digest: SHA-256 of all that must be the same when an Idempotency-Key, or a client's
    retry, comes again, whatever base path it came on. token: the Idempotency-Key."""

    order: Order
    digest: bytes
    token: str | None


def read(request: Request, caller: Key, endpoint: str, *, model: str | None = None) -> Ask:
    """What this request asks for. endpoint: one of models.endpoint, or `/v1/models/<id>`. model: beats that of the body.

    Raises Invalid and its kinds, with a message that says where and what to do.
    """
    going = forwarded.headers(request, caller)
    line = f"{routes.method(endpoint)} {endpoint}\n".encode() + forwarded.said(going)
    if routes.method(endpoint) == "GET":
        _expect_model(endpoint)
        own, token, _ = controls.read(request.headers, {})
        order = orders.listing(caller, endpoint, own=visitor.mark_controls(request, own))
        return Ask(replace(order, headers=going), hashlib.sha256(line).digest(), token)
    then = partial(_ordered, caller, endpoint, line, request.headers, model=model)
    is_form = endpoint == routes.EDITS and form.is_form(request)
    asked = form.read_then(request, then) if is_form else body.read_then(request, then)
    return replace(asked, order=replace(asked.order, headers=going))


def _ordered(caller: Key, endpoint: str, line: bytes, headers: Headers, sent: body.Sent | form.Form, *, model: str | None) -> Ask:
    own, token, value = controls.read(headers, sent.value)
    if model is not None and value.get("model") != model:
        value, line = {**value, "model": model}, line + f"model {model}\n".encode()
    return Ask(orders.direct(caller, endpoint, value, write=sent.written, own=own), sent.digest(line), token)


def _expect_model(endpoint: str) -> None:
    """Raises NotFound for what is no model's id: with `..` in it, it might be another address of the upstream."""
    if endpoint == routes.MODELS:
        return
    name = endpoint.removeprefix(f"{routes.MODELS}/")
    is_plain = name.isprintable() and UNREADABLE not in name and len(name) <= MODEL_ID_MOST
    if not is_plain or not all(part.strip(".") for part in name.split("/")):
        raise NotFound("No such model. GET /v1/models lists those there are.", param="model", code="model_not_found")
