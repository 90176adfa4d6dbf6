"""Descriptions of the operator lists and the operators' page for the OpenAPI document."""

from __future__ import annotations

from functools import partial

from api.openapi.route import HTML, JSON, PAGING, Route, query
from api.ops import credential_responses
from api.ops import responses as ops_responses
from models.jobs.states import Status
from models.platform.wire import JsonObject

_POOL = query("pool", "Only of this pool.", type="string")
_MODEL = query("model", "Only of this model.", type="string")
_LANE = query("lane", "Only in this lane.", type="integer", minimum=0)
_USER = query("user", "Only of this user.", type="string")
_OPEN: JsonObject = {"tag": "docs", "needs_key": False, "errors": ()}
_FLAG = {"type": "boolean", "default": False}
_route = partial(Route, tag="operators", scheme="operator", errors=(400, 401, 403, 503))

ROUTES: tuple[Route, ...] = (
    _route(
        "get", "/ops/lanes", "seeLanes", "List the lanes: waiting jobs, limits, reasons for waiting",
        {200: ("One page of lanes.", JSON, ops_responses.LaneList)},
        parameters=(
            *PAGING, _POOL, _MODEL, query("busy", "Only lanes with waiting or running jobs.", **_FLAG),
            query("order", "By id, or by the number of waiting jobs, most first.", type="string", enum=["id", "waiting"], default="id"),
        ),
    ),
    _route(
        "get", "/ops/pools", "seePools", "List the pools", {200: ("One page of pools.", JSON, ops_responses.PoolList)},
        parameters=(*PAGING, query("kind", "Pools of callers' own keys, or of issued keys.", type="string", enum=["own", "issued"])),
    ),
    _route(
        "get", "/ops/keys", "seeKeys", "List the callers' keys: caps, pauses, waiting and running jobs",
        {200: ("One page of keys.", JSON, ops_responses.KeyList)},
        parameters=(
            *PAGING, query("kind", "Callers' own upstream keys, or issued keys.", type="string", enum=["own", "issued"]),
            query("name", "Only keys with this name.", type="string"),
        ),
    ),
    _route(
        "get", "/ops/flows", "seeFlows", "List the flows", {200: ("One page of flows.", JSON, ops_responses.FlowList)},
        parameters=(*PAGING, _LANE, _USER),
    ),
    _route(
        "get", "/ops/jobs", "searchJobs", "Search jobs", {200: ("One page of jobs.", JSON, ops_responses.SeenJobList)},
        parameters=(
            *PAGING, query("id", "This job.", type="string"), query("caller", "Only of the key with this id or name.", type="string"),
            _USER,
            query("status", "Only in this state.", type="string", enum=[str(status) for status in Status]), _LANE, _POOL, _MODEL,
            query("since", "Submitted then or later: Unix seconds or ISO 8601.", type="string"),
            query("until", "Submitted before then.", type="string"),
        ),
        errors=(400, 401, 403, 404, 503),
    ),
    _route(
        "get", "/ops/credentials", "seeCredentials", "List the credentials: parked, paused, limits, errors",
        {200: ("One page of credentials.", JSON, credential_responses.CredentialList)},
        parameters=(*PAGING, _POOL, query("parked", "Only parked credentials, or only others.", type="boolean")),
    ),
    _route(
        "get", "/ops/workers", "seeWorkers", "List the worker processes and their jobs",
        {200: ("One page of workers.", JSON, credential_responses.WorkerList)}, parameters=PAGING,
    ),
    Route("get", "/ops", "getOpsHome", "Redirect to /ops/", {302: ("See /ops/.", "", None)}, **_OPEN),
    Route("get", "/ops/", "getOpsPage", "Show the operators' page", {200: ("The page.", HTML, None)}, **_OPEN),
    Route(
        "get", "/ops/page/{id}", "getOpsPagePart", "Retrieve a file of the operators' page", {200: ("The file.", "text/plain", None)},
        **{**_OPEN, "errors": (404,)},
    ),
)  # fmt: skip
