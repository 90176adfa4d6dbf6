"""The levers under /ops: pause, resume, drain; limits, caps, weights; who stands where; many jobs at once."""

from __future__ import annotations

import time
from typing import TypeVar
from uuid import UUID

from flask import Response, request
from pydantic import BaseModel

from api.access import operator_auth
from api.http import render, request_body
from api.ops import actions, bulk_retry
from api.ops import schemas as ops_schemas
from api.submit import schemas
from models.ops import pause
from models.ops.pause import Target
from models.platform import wire
from models.platform.errors import NotFound

routes = operator_auth.blueprint("levers")

Wanted = TypeVar("Wanted", bound=BaseModel)
THINGS = {"pools": "pool", "lanes": "lane", "keys": "key", "flows": "flow", "credentials": "credential"}
# A request that takes longer would be cut by a proxy; what is left is for the next one.
PATIENCE_S = 15.0


@routes.post("/<any(pools, lanes, keys, flows, credentials):things>/<path:name>/<any(pause, resume, drain):verb>")
@operator_auth.requires("write")
def act_on(things: str, name: str, verb: str) -> Response:
    """Nobody starts, everybody may start again, or nothing new is taken."""
    wanted = _read(ops_schemas.Order)
    return render.json_response(actions.halt_it(operator_auth.act(wanted.reason), verb, _target(things, name)))


@routes.post("/credentials/<path:name>/limits")
@operator_auth.requires("write")
def limits(name: str) -> Response:
    """What the credential may do, from the next admission on."""
    wanted = _read(ops_schemas.LimitsOrder)
    changes = {one: getattr(wanted, one) for one in wanted.model_fields_set - {"reason", "model"}}
    return render.json_response(
        actions.set_limits(operator_auth.act(wanted.reason), _number("credential", name), changes, model=wanted.model)
    )


@routes.post("/<any(keys, flows):things>/<path:name>/caps")
@operator_auth.requires("write")
def caps(things: str, name: str) -> Response:
    """How much of the line the key or the user may have."""
    wanted = _read(ops_schemas.CapsOrder)
    changes = {one: getattr(wanted, one) for one in wanted.model_fields_set - {"reason", "endpoint"}}
    return render.json_response(
        actions.set_caps(operator_auth.act(wanted.reason), _target(things, name), changes, endpoint=wanted.endpoint or "")
    )


@routes.post("/pools/<path:name>/credentials")
@operator_auth.requires("write")
def add(name: str) -> Response:
    """One more upstream key behind the pool."""
    wanted = _read(ops_schemas.NewCredential)
    made = actions.add_credential(
        operator_auth.act(wanted.reason), _number("pool", name), upstream_key=wanted.key, base_url=wanted.base_url, weight=wanted.weight,
        kind=wanted.kind, api_version=wanted.api_version,
    )  # fmt: skip
    return render.json_response(made, 201)


@routes.post("/credentials/<path:name>/change")
@operator_auth.requires("write")
def change(name: str) -> Response:
    """Its weight, address or secret, from the next call on."""
    wanted = _read(ops_schemas.CredentialChange)
    made = actions.change_credential(
        operator_auth.act(wanted.reason), _number("credential", name), weight=wanted.weight, base_url=wanted.base_url,
        upstream_key=wanted.key,
        api_version=wanted.api_version,
    )  # fmt: skip
    return render.json_response(made)


@routes.post("/credentials/<path:name>/retire")
@operator_auth.requires("write")
def retire(name: str) -> Response:
    """It gets no more jobs."""
    wanted = _read(ops_schemas.Order)
    return render.json_response(actions.retire(operator_auth.act(wanted.reason), _number("credential", name)))


@routes.post("/<any(keys, flows):things>/<path:name>/weight")
@operator_auth.requires("write")
def weight(things: str, name: str) -> Response:
    """The key's share of each lane beside the pool's other keys; the user's beside the key's other users."""
    wanted = _read(ops_schemas.WeightOrder)
    return render.json_response(actions.weigh(operator_auth.act(wanted.reason), _target(things, name), weight=wanted.weight))


@routes.post("/lanes/<path:name>/rebuild")
@operator_auth.requires("write")
def rebuild(name: str) -> Response:
    """Limiter state and counters, made again from Postgres."""
    wanted = _read(ops_schemas.Order)
    return render.json_response(actions.rebuild(operator_auth.act(wanted.reason), _number("lane", name)), 202)


@routes.post("/jobs/<name>/boost")
@operator_auth.requires("write")
def boost(name: str) -> Response:
    """The job stands at the head of its lane."""
    wanted = _read(ops_schemas.Order)
    return render.json_response(actions.boost(operator_auth.act(wanted.reason), _job(name)))


@routes.post("/jobs/<name>/priority")
@operator_auth.requires("write")
def priority(name: str) -> Response:
    """The job's weight in its flow."""
    wanted = _read(ops_schemas.PriorityOrder)
    return render.json_response(actions.prioritise(operator_auth.act(wanted.reason), _job(name), priority=wanted.priority))


@routes.post("/jobs/<name>/cancel")
@operator_auth.requires("write")
def cancel(name: str) -> Response:
    """As its caller would."""
    wanted = _read(ops_schemas.Order)
    return render.json_response(actions.cancel(operator_auth.act(wanted.reason), _job(name)))


@routes.post("/jobs/<name>/retry")
@operator_auth.requires("write")
def retry(name: str) -> Response:
    """A new job of the same caller asks the same once more."""
    wanted = _read(ops_schemas.Order)
    return render.json_response(actions.retry(operator_auth.act(wanted.reason), _job(name)), 202)


@routes.post("/jobs/purge")
@operator_auth.requires("write")
def purge() -> Response:
    """Waiting jobs are cancelled by filter."""
    wanted = _read(ops_schemas.PurgeOrder)
    until = time.monotonic() + PATIENCE_S
    done, has_more = actions.purge_all(operator_auth.act(wanted.reason), wanted.filter(), status=wanted.status, until=until)
    return render.json_response({"object": "purge", "cancelled": done, "has_more": has_more})


@routes.post("/jobs/retry")
@operator_auth.requires("write")
def retry_all() -> Response:
    """Failed and expired jobs are retried, by filter."""
    wanted = _read(ops_schemas.RetryOrder)
    after = None if wanted.after is None else wire.parse_id(wanted.after)
    report = bulk_retry.run(operator_auth.act(wanted.reason), wanted.filter(), after=after, until=time.monotonic() + PATIENCE_S)
    return render.json_response({"object": "retries", **report.show()}, 202)


def _read(kind: type[Wanted]) -> Wanted:
    """The body; none is an empty one."""
    return schemas.validate(kind, request_body.read_json(request) if request.content_length or request.mimetype else {})


def _target(things: str, name: str) -> Target:
    return pause.parse_target(THINGS[things], name)


def _number(kind: str, name: str) -> int:
    return pause.parse_target(kind, name).number


def _job(name: str) -> UUID:
    try:
        return wire.parse_id(name)
    except NotFound:
        raise NotFound("No such job.") from None
