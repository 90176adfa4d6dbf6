"""GET /v1/models and /v1/models/{id}, answered from copies of the upstream's list; no job, and no wait in line.

A copy older than NOWSERVING_MODELS_AGE_S is answered at once and refreshed in the background by a worker. Without a copy, or for a model
that a copy of more than a few seconds lacks, the request waits for the worker, FIRST_S at most.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from flask import Blueprint, Request, Response, request

from api.access import auth
from api.http import forwarded_headers, offload, render
from api.waiting import notify_queue
from models.config.settings import settings
from models.database import db
from models.keys import model_lists
from models.keys.keys import Key
from models.platform.errors import NotFound, Unavailable
from models.platform.wire import JsonObject

routes = Blueprint("model_lists", __name__)

FIRST_S = 2.0
# After a refresh that failed, the next one begins at least so much later.
RETRY_S = 10.0
# A model may have been added upstream: a list that lacks it is refreshed when it is older than this.
MISSING_AGE_S = 10.0
# How often a request that waits reads the row, growing; and publishes again, for wake-ups may be lost.
POLL_S, POLL_MAX_S, PUBLISH_AGAIN_S = 0.02, 0.2, 0.5
MODEL_ID_MAX_CHARS = 200
# What stands for bytes of an address that are not UTF-8.
UNREADABLE = "\ufffd"
# Headers of a caller that choose whose models are listed; others are not sent with a refresh.
ACCOUNT_HEADERS = frozenset({"openai-organization", "openai-project"})
# Refusals that are about the caller's own key or the route; every other one may be gone at the next try.
FINAL = frozenset(range(400, 500)) - {408, 409, 425, 429}
WAIT = "The upstream's list of models is not here yet. Ask again in 2 s; all other routes work without it."


class ListUnavailable(Unavailable):
    """The upstream's list of models cannot be read now. Ask again in 10 s; all other routes work without it."""

    code = "models_unavailable"


@dataclass(frozen=True)
class Lists:
    """The copies of one pool and account. rows: of model_list.standing."""

    rows: Sequence[Any]
    account: str

    @property
    def with_body(self) -> list[Any]:
        return [row for row in self.rows if row.has_body]

    @property
    def age_s(self) -> float:
        """Of the oldest copy; 0 without any."""
        return max((row.age_s for row in self.with_body), default=0.0)

    def due(self, age_s: float) -> list[int]:
        """Credentials whose copy is older than this, or missing, and whose last refresh did not just fail."""
        return [
            row.credential_id for row in self.rows
            if not row.is_paused and (row.age_s is None or row.age_s > age_s)
            and not (row.refusal and row.tried_s is not None and row.tried_s < RETRY_S)
        ]  # fmt: skip

    def is_pending(self, credential_ids: Sequence[int]) -> bool:
        """Whether the refresh of one of these has not ended."""
        return any(row.is_wanted for row in self.rows if row.credential_id in credential_ids)

    def bodies(self) -> list[bytes]:
        with db.autocommit() as session:
            return model_lists.bodies(session, [row.credential_id for row in self.with_body], account=self.account)


@routes.get("/models")
def models() -> Response:
    """The models that the upstream lists: its own bytes, or the union of several credentials' lists."""
    caller = auth.caller(request)
    lists = _current(caller, _account(request, caller), settings().models_age_s, waits=lambda found: not found.with_body)
    bodies = lists.bodies()
    if not bodies:
        return _without_copy(lists, caller)
    content = bodies[0] if len(bodies) == 1 else offload.run(sum(map(len, bodies)), partial(_union, bodies))
    return _answer(content, lists)


@routes.get("/models/<path:name>")
def model(name: str) -> Response:
    """One model of that list. Its name may hold slashes and colons."""
    caller = auth.caller(request)
    if not _is_plain(name):
        raise _no_model()
    account = _account(request, caller)
    lists = _current(caller, account, settings().models_age_s, waits=lambda found: not found.with_body)
    content = _find(lists, name)
    if content is None and lists.age_s > MISSING_AGE_S:
        lists = _current(caller, account, MISSING_AGE_S, waits=lambda _: True)
        content = _find(lists, name)
    if content is not None:
        return _answer(content, lists)
    if not lists.with_body:
        return _without_copy(lists, caller)
    if min(row.age_s for row in lists.with_body) > settings().models_age_s:
        raise ListUnavailable(
            "The list of models here is old and has no such model, and the upstream does not give a newer one just now. Ask again in 10 s; "
            "requests that name this model are sent all the same.",
            retry_after_s=RETRY_S,
        )
    raise _no_model()


def _is_plain(name: str) -> bool:
    """Whether this may be a model's id: printable, and no path to somewhere else."""
    is_text = name.isprintable() and UNREADABLE not in name and len(name) <= MODEL_ID_MAX_CHARS
    return is_text and all(part.strip(".") for part in name.split("/"))


def _account(request: Request, caller: Key) -> str:
    going = forwarded_headers.headers(request, caller) or {}
    return model_lists.account({name: value for name, value in going.items() if name in ACCOUNT_HEADERS})


def _current(caller: Key, account: str, age_s: float, *, waits: Callable[[Lists], bool]) -> Lists:
    """The copies as they stand, with a refresh on its way for those older than age_s. waits: whether this request waits for that."""
    lists = _read(caller, account)
    if not (due := lists.due(age_s)):
        return lists
    with db.begin() as session:
        model_lists.want(session, due, account=account)
    notify_queue.refresh_model_lists()
    if not waits(lists):
        return lists
    now = time.monotonic()
    until, publish_at, pause_s = now + FIRST_S, now + PUBLISH_AGAIN_S, POLL_S
    while (now := time.monotonic()) < until:
        time.sleep(min(pause_s, until - now))
        lists, pause_s = _read(caller, account), min(pause_s * 1.5, POLL_MAX_S)
        if not lists.is_pending(due):
            break
        if now >= publish_at:
            notify_queue.refresh_model_lists()
            publish_at = now + PUBLISH_AGAIN_S
    return lists


def _read(caller: Key, account: str) -> Lists:
    with db.autocommit() as session:
        return Lists(model_lists.standing(session, caller.pool_id, account=account), account)


def _find(lists: Lists, name: str) -> bytes | None:
    for body in lists.bodies():
        if (found := offload.run(len(body), partial(_find_in, body, name))) is not None:
            return found
    return None


def _find_in(body: bytes, name: str) -> bytes | None:
    return next((raw for one, raw in model_lists.entries(body) if one == name), None)


def _union(bodies: Sequence[bytes]) -> bytes:
    """One list of all models in these lists; of those with the same id the first."""
    found: dict[str, bytes] = {}
    for body in bodies:
        for name, raw in model_lists.entries(body):
            found.setdefault(name, raw)
    return b'{"object":"list","data":[' + b",".join(found.values()) + b"]}"


def _answer(content: bytes, lists: Lists) -> Response:
    made = Response(content, mimetype="application/json")
    made.headers.update({"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Age": str(math.floor(lists.age_s))})
    if refused := [row.refusal for row in lists.rows if row.refusal]:
        made.headers["X-Nowserving-Refresh-Error"] = _words(refused[0])
    return made


def _words(refusal: JsonObject) -> str:
    """Status and code of a refused refresh, as a header's value."""
    code = str(refusal["error"].get("code") or "")
    return f"{refusal['status']} {code}" if code and code.isascii() and code.isprintable() else str(refusal["status"])


def _without_copy(lists: Lists, caller: Key) -> Response:
    """Why there is no list: the upstream's own refusal where it concerns the caller, else a 503. Raises ListUnavailable."""
    usable = [row for row in lists.rows if not row.is_paused]
    if not usable:
        raise ListUnavailable(
            "Every upstream key behind this key is paused, or there is none, and no list of models is here from before. Ask the operator, "
            "or ask again later.",
            retry_after_s=60,
        )
    if lists.is_pending([row.credential_id for row in usable]) or not (refused := [row.refusal for row in usable if row.refusal]):
        raise ListUnavailable(WAIT, retry_after_s=FIRST_S)
    refusal = next((one for one in refused if one["status"] == HTTPStatus.NOT_FOUND), refused[0])
    # What is wrong with an operator's credential is no fault of the caller's key.
    if refusal["status"] in FINAL and (caller.kind == "own" or refusal["status"] == HTTPStatus.NOT_FOUND):
        return render.answer({"error": refusal["error"]}, refusal["status"], headers={"x-should-retry": "false"})
    raise ListUnavailable(
        f"The upstream does not give its list of models ({refusal['status']}: {str(refusal['error'].get('message'))[:200]}). "
        "Ask again in 10 s; if it lasts, ask the operator. All other routes work without the list.",
        retry_after_s=RETRY_S,
    )


def _no_model() -> NotFound:
    return NotFound(
        "The upstream's list of models has no such model. GET /v1/models lists those there are. Names are not checked elsewhere: a request "
        "with an alias or a model that is not listed is sent all the same.",
        param="model", code="model_not_found",
    )  # fmt: skip
