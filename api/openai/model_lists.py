"""GET /v1/models and /v1/models/{id}, served from copies of the upstream's list: no job is made, and nothing is enqueued.

A copy older than NOWSERVING_MODELS_AGE_S is returned at once, and a worker refreshes it in the background. Without a copy, or for a model
that a copy of more than a few seconds lacks, the request waits for the worker, MAX_WAIT_S at most.
"""

from __future__ import annotations

import math
from functools import partial
from http import HTTPStatus

from flask import Blueprint, Request, Response, request

from api.access import auth
from api.http import forwarded_headers, offload, render
from api.openai import model_list_copies
from api.openai.model_list_copies import MAX_WAIT_S, RETRY_S, Copies
from models.config.settings import settings
from models.keys import model_lists
from models.keys.keys import Key
from models.platform.errors import NotFound, Unavailable
from models.platform.wire import JsonObject

routes = Blueprint("model_lists", __name__)

# A model may have been added upstream: a list that lacks it is refreshed when it is older than this.
MISSING_AGE_S = 10.0
MAX_MODEL_ID_CHARS = 200
# Replaces bytes of the path that are not UTF-8.
REPLACEMENT = "\ufffd"
# Caller headers that choose whose models are listed; other headers are not sent with a refresh.
ACCOUNT_HEADERS = frozenset({"openai-organization", "openai-project"})
# Refusals that concern the caller's own key or the route; any other refusal may be gone at the next try.
FINAL = frozenset(range(400, 500)) - {408, 409, 425, 429}
NOT_READ_YET = "The upstream's list of models has not been read yet. Ask again in 2 s; all other routes work without it."


class ListUnavailable(Unavailable):
    """The upstream's list of models cannot be read now. Ask again in 10 s; all other routes work without it."""

    code = "models_unavailable"


@routes.get("/models")
def list_models() -> Response:
    """Lists the upstream's models: its own bytes, or the union of several credentials' lists."""
    caller = auth.authenticate(request)
    copies = _copies(caller)
    bodies = copies.bodies()
    if not bodies:
        return _without_copy(copies, caller)
    content = bodies[0] if len(bodies) == 1 else offload.run(sum(map(len, bodies)), partial(model_list_copies.union, bodies))
    return _respond(content, copies)


@routes.get("/models/<path:name>")
def get_model(name: str) -> Response:
    """Returns one model of the list. Its name may contain slashes and colons."""
    caller = auth.authenticate(request)
    if not _is_model_id(name):
        raise _no_model()
    copies = _copies(caller)
    content = copies.find_model(name)
    if content is None and copies.age_s > MISSING_AGE_S:
        copies = model_list_copies.refreshed(caller, _account(request, caller), MISSING_AGE_S, waits=lambda _: True)
        content = copies.find_model(name)
    if content is not None:
        return _respond(content, copies)
    if not copies.with_body:
        return _without_copy(copies, caller)
    if min(row.age_s for row in copies.with_body) > settings().models_age_s:
        raise ListUnavailable(
            "The stored list of models is old and lacks this model, and the upstream does not return a newer list now. Ask again in 10 s; "
            "requests with this model are sent to the upstream all the same.",
            retry_after_s=RETRY_S,
        )
    raise _no_model()


def _copies(caller: Key) -> Copies:
    return model_list_copies.refreshed(
        caller, _account(request, caller), settings().models_age_s, waits=lambda copies: not copies.with_body
    )


def _is_model_id(name: str) -> bool:
    """Whether this may be a model's id: printable, and without path segments such as `..`."""
    is_text = name.isprintable() and REPLACEMENT not in name and len(name) <= MAX_MODEL_ID_CHARS
    return is_text and all(part.strip(".") for part in name.split("/"))


def _account(request: Request, caller: Key) -> str:
    headers = forwarded_headers.select_headers(request, caller) or {}
    return model_lists.account_name({name: value for name, value in headers.items() if name in ACCOUNT_HEADERS})


def _respond(content: bytes, copies: Copies) -> Response:
    response = Response(content, mimetype="application/json")
    response.headers.update({"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Age": str(math.floor(copies.age_s))})
    if refusals := [row.refusal for row in copies.rows if row.refusal]:
        response.headers["X-Nowserving-Refresh-Error"] = _header_value(refusals[0])
    return response


def _header_value(refusal: JsonObject) -> str:
    """Returns status and code of a failed refresh."""
    code = str(refusal["error"].get("code") or "")
    return f"{refusal['status']} {code}" if code and code.isascii() and code.isprintable() else str(refusal["status"])


def _without_copy(copies: Copies, caller: Key) -> Response:
    """Returns the upstream's own refusal where it concerns the caller. Raises ListUnavailable otherwise."""
    usable = [row for row in copies.rows if not row.is_paused]
    if not usable:
        raise ListUnavailable(
            "Every upstream credential of this key is paused, or there is none, and no list of models was stored before. Ask the operator, "
            "or ask again later.",
            retry_after_s=60,
        )
    refusals = [row.refusal for row in usable if row.refusal]
    if not refusals or copies.is_pending([row.credential_id for row in usable]):
        raise ListUnavailable(NOT_READ_YET, retry_after_s=MAX_WAIT_S)
    refusal = next((refusal for refusal in refusals if refusal["status"] == HTTPStatus.NOT_FOUND), refusals[0])
    # A refusal of an operator's credential says nothing about the caller's key.
    if refusal["status"] in FINAL and (caller.kind == "own" or refusal["status"] == HTTPStatus.NOT_FOUND):
        return render.json_response({"error": refusal["error"]}, refusal["status"], headers={"x-should-retry": "false"})
    raise ListUnavailable(
        f"The upstream does not return its list of models ({refusal['status']}: {str(refusal['error'].get('message'))[:200]}). "
        "Ask again in 10 s; if it lasts, ask the operator. All other routes work without the list.",
        retry_after_s=RETRY_S,
    )


def _no_model() -> NotFound:
    return NotFound(
        "The upstream's list of models has no such model. GET /v1/models returns the list. Other routes do not check names: a request "
        "with an alias or a model that is not listed is sent all the same.",
        param="model", code="model_not_found",
    )  # fmt: skip
