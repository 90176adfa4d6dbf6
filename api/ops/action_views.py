"""The routes of operator actions under /ops: pause, resume, drain; limits, caps, weights; jobs, singly or by filter."""

from __future__ import annotations

import time
from typing import TypeVar
from uuid import UUID

from flask import Response, request

from api.access import operator_auth
from api.http import render, request_body
from api.ops import actions, bulk_retry, job_actions
from api.ops import schemas as ops_schemas
from api.submit import schemas
from models.access.audit_log import Act
from models.ops import pause
from models.ops.pause import Target
from models.platform import wire
from models.platform.errors import NotFound

routes = operator_auth.blueprint("ops_actions")

Body = TypeVar("Body", bound=ops_schemas.Order)
KINDS = {"pools": "pool", "lanes": "lane", "keys": "key", "flows": "flow", "credentials": "credential"}
# Proxies cut longer requests; the next request continues.
MAX_REQUEST_S = 15.0


@routes.post("/<any(pools, lanes, keys, flows, credentials):kinds>/<path:name>/<any(pause, resume, drain):verb>")
@operator_auth.requires("write")
def pause_resume_or_drain(kinds: str, name: str, verb: str) -> Response:
    """Pauses, resumes or drains a pool, lane, key, flow or credential."""
    act, _ = _read(ops_schemas.Order)
    return render.json_response(actions.pause_resume_or_drain(act, verb, _target(kinds, name)))


@routes.post("/credentials/<path:name>/limits")
@operator_auth.requires("write")
def set_limits(name: str) -> Response:
    """Changes a credential's limits, from the next admission on."""
    act, body = _read(ops_schemas.LimitsOrder)
    changes = {field: getattr(body, field) for field in body.model_fields_set - {"reason", "model"}}
    return render.json_response(actions.set_limits(act, _number("credential", name), changes, model=body.model))


@routes.post("/<any(keys, flows):kinds>/<path:name>/caps")
@operator_auth.requires("write")
def set_caps(kinds: str, name: str) -> Response:
    """Changes the caps of a key or a flow."""
    act, body = _read(ops_schemas.CapsOrder)
    changes = {field: getattr(body, field) for field in body.model_fields_set - {"reason", "endpoint"}}
    return render.json_response(actions.set_caps(act, _target(kinds, name), changes, endpoint=body.endpoint or ""))


@routes.post("/pools/<path:name>/credentials")
@operator_auth.requires("write")
def add_credential(name: str) -> Response:
    """Adds an upstream key to the pool."""
    act, body = _read(ops_schemas.NewCredential)
    credential = actions.add_credential(
        act, _number("pool", name), upstream_key=body.key, base_url=body.base_url, weight=body.weight, kind=body.kind,
        api_version=body.api_version,
    )  # fmt: skip
    return render.json_response(credential, 201)


@routes.post("/credentials/<path:name>/change")
@operator_auth.requires("write")
def change_credential(name: str) -> Response:
    """Changes a credential's weight, address or secret, from the next call on."""
    act, body = _read(ops_schemas.CredentialChange)
    credential = actions.change_credential(
        act, _number("credential", name), weight=body.weight, base_url=body.base_url, upstream_key=body.key, api_version=body.api_version
    )
    return render.json_response(credential)


@routes.post("/credentials/<path:name>/retire")
@operator_auth.requires("write")
def retire_credential(name: str) -> Response:
    """Retires a credential: it gets no more jobs."""
    act, _ = _read(ops_schemas.Order)
    return render.json_response(actions.retire_credential(act, _number("credential", name)))


@routes.post("/<any(keys, flows):kinds>/<path:name>/weight")
@operator_auth.requires("write")
def set_weight(kinds: str, name: str) -> Response:
    """Sets a key's share among the pool's keys, or a user's share among the key's users, in each lane."""
    act, body = _read(ops_schemas.WeightOrder)
    return render.json_response(actions.set_weight(act, _target(kinds, name), weight=body.weight))


@routes.post("/lanes/<path:name>/rebuild")
@operator_auth.requires("write")
def rebuild_lane(name: str) -> Response:
    """Rebuilds a lane's limiter state and counters from Postgres."""
    act, _ = _read(ops_schemas.Order)
    return render.json_response(actions.rebuild_lane(act, _number("lane", name)), 202)


@routes.post("/jobs/<name>/boost")
@operator_auth.requires("write")
def boost_job(name: str) -> Response:
    """Moves a job to the head of its lane."""
    act, _ = _read(ops_schemas.Order)
    return render.json_response(job_actions.boost(act, _job_id(name)))


@routes.post("/jobs/<name>/priority")
@operator_auth.requires("write")
def set_job_priority(name: str) -> Response:
    """Changes a job's weight in its flow."""
    act, body = _read(ops_schemas.PriorityOrder)
    return render.json_response(job_actions.set_priority(act, _job_id(name), priority=body.priority))


@routes.post("/jobs/<name>/cancel")
@operator_auth.requires("write")
def cancel_job(name: str) -> Response:
    """Cancels a job, as its caller can."""
    act, _ = _read(ops_schemas.Order)
    return render.json_response(job_actions.cancel(act, _job_id(name)))


@routes.post("/jobs/<name>/retry")
@operator_auth.requires("write")
def retry_job(name: str) -> Response:
    """Resubmits a job for its caller."""
    act, _ = _read(ops_schemas.Order)
    return render.json_response(job_actions.retry(act, _job_id(name)), 202)


@routes.post("/jobs/purge")
@operator_auth.requires("write")
def purge_jobs() -> Response:
    """Cancels waiting jobs by filter."""
    act, body = _read(ops_schemas.PurgeOrder)
    until = time.monotonic() + MAX_REQUEST_S
    cancelled, has_more = job_actions.cancel_matching(act, body.filter(), status=body.status, until=until)
    return render.json_response({"object": "purge", "cancelled": cancelled, "has_more": has_more})


@routes.post("/jobs/retry")
@operator_auth.requires("write")
def retry_jobs() -> Response:
    """Resubmits failed and expired jobs by filter."""
    act, body = _read(ops_schemas.RetryOrder)
    after = None if body.after is None else wire.parse_id(body.after)
    report = bulk_retry.run(act, body.filter(), after=after, until=time.monotonic() + MAX_REQUEST_S)
    return render.json_response({"object": "retries", **report.show()}, 202)


def _read(model: type[Body]) -> tuple[Act, Body]:
    """Parses the request body; a missing body counts as an empty object. Returns the audited act too."""
    body = schemas.validate(model, request_body.read_json(request) if request.content_length or request.mimetype else {})
    return operator_auth.act(body.reason), body


def _target(kinds: str, name: str) -> Target:
    return pause.parse_target(KINDS[kinds], name)


def _number(kind: str, name: str) -> int:
    return pause.parse_target(kind, name).number


def _job_id(name: str) -> UUID:
    try:
        return wire.parse_id(name)
    except NotFound:
        raise NotFound("No such job.") from None
