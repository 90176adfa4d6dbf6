"""The routes of operator lists: lanes, pools, keys, flows, jobs, credentials and workers."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from flask import Response, request

from api.access import operator_auth
from api.http import paging, render
from models.config.settings import settings
from models.database import db
from models.jobs import workers
from models.jobs.states import Status
from models.ops import flow_report, job_search, key_report, lane_report, pool_report
from models.ops.job_search import JobQuery
from models.ops.lane_report import LaneFilter
from models.platform import wire
from models.platform.errors import Invalid

routes = operator_auth.blueprint("ops_lists")

MAX_ID = 2**63 - 1
# The end of the 21st century; later times are typing errors.
MAX_EPOCH_S = 4_102_444_800


@routes.get("/lanes")
@operator_auth.requires("read")
def list_lanes() -> Response:
    """Lists the lanes."""
    which = LaneFilter(
        pool=_text("pool"), model=_text("model"), is_busy=_flag("busy") or False,
        by_waiting=_one_of("order", ("id", "waiting")) == "waiting",
    )  # fmt: skip
    limit, after = paging.parse_limit(), paging.parse_after(_cursor)
    with db.begin() as session:
        shown = lane_report.list_lanes(session, which, limit=limit, after=after)
    return paging.list_response(shown[:limit], has_more=len(shown) > limit)


@routes.get("/pools")
@operator_auth.requires("read")
def list_pools() -> Response:
    """Lists the pools."""
    limit, after, kind = paging.parse_limit(), paging.parse_after(_cursor), _one_of("kind", ("own", "issued"))
    with db.begin() as session:
        shown = pool_report.list_pools(session, limit=limit, after=after, kind=kind)
    return paging.list_response(shown[:limit], has_more=len(shown) > limit)


@routes.get("/keys")
@operator_auth.requires("read")
def list_keys() -> Response:
    """Lists the callers' keys without their secrets."""
    limit, after, kind = paging.parse_limit(), paging.parse_after(_cursor), _one_of("kind", ("own", "issued"))
    with db.begin() as session:
        shown = key_report.list_keys(session, limit=limit, after=after, kind=kind, name=_text("name"))
    return paging.list_response(shown[:limit], has_more=len(shown) > limit)


@routes.get("/credentials")
@operator_auth.requires("read")
def list_credentials() -> Response:
    """Lists the upstream credentials without their secrets."""
    limit, after = paging.parse_limit(), paging.parse_after(_cursor)
    with db.begin() as session:
        shown = pool_report.list_credentials(session, limit=limit, after=after, pool=_text("pool"), is_parked=_flag("parked"))
    return paging.list_response(shown[:limit], has_more=len(shown) > limit)


@routes.get("/flows")
@operator_auth.requires("read")
def list_flows() -> Response:
    """Lists the flows, those with most waiting jobs first."""
    limit, lane, after = paging.parse_limit(), _optional_id("lane"), _text("after")
    with db.begin() as session:
        shown = flow_report.list_flows(session, lane=lane, user=_text("user"))
    start = next((n + 1 for n, flow in enumerate(shown) if flow["id"] == after), len(shown)) if after is not None else 0
    return paging.list_response(shown[start : start + limit], has_more=len(shown) > start + limit)


@routes.get("/jobs")
@operator_auth.requires("read")
def search_jobs() -> Response:
    """Searches jobs."""
    limit, after = paging.parse_limit(), paging.parse_after(wire.parse_id)
    status = _one_of("status", tuple(Status))
    query = JobQuery(
        id=wire.parse_id(request.args["id"]) if "id" in request.args else None, key=_text("caller"),
        user=_text("user"), status=Status(status) if status else None, lane=_optional_id("lane"),
        pool=_text("pool"), model=_text("model"), since=_time("since"), until=_time("until"),
    )  # fmt: skip
    with db.begin() as session:
        found = job_search.search(session, query, limit=limit, after=after)
    last = wire.public_id(found.next_after) if found.next_after else found.jobs[-1]["id"] if found.jobs else None
    first = found.jobs[0]["id"] if found.jobs else None
    return render.json_response(
        {"object": "list", "data": found.jobs, "has_more": found.next_after is not None, "first_id": first, "last_id": last}
    )


@routes.get("/workers")
@operator_auth.requires("read")
def list_workers() -> Response:
    """Lists the worker processes."""
    limit = paging.parse_limit()
    with db.begin() as session:
        shown = workers.list_workers(session, limit=limit, after=_text("after"), silent_s=settings().heartbeat_s * 3)
    return paging.list_response(shown[:limit], has_more=len(shown) > limit)


def _cursor(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > MAX_ID:
        raise Invalid("`after` is the last id of the page before.", param="after")
    return int(text)


def _optional_id(name: str) -> int | None:
    if name not in request.args:
        return None
    text = request.args[name]
    if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > MAX_ID:
        raise Invalid(f"`{name}` is the id of a lane: /ops/lanes lists them.", param=name)
    return int(text)


def _text(name: str) -> str | None:
    text = request.args.get(name)
    if text is not None and "\0" in text:
        raise Invalid(f"`{name}` contains a NUL character. Send it without.", param=name)
    return text


def _flag(name: str) -> bool | None:
    text = _one_of(name, ("true", "false"))
    return None if text is None else text == "true"


def _one_of(name: str, choices: tuple[str, ...]) -> str | None:
    text = request.args.get(name)
    if text is not None and text not in choices:
        raise Invalid(f"`{name}` is one of: {', '.join(choices)}.", param=name)
    return text


def _time(name: str) -> datetime | None:
    """Returns a time given as Unix seconds or as ISO 8601 with a time zone. Raises Invalid."""
    if name not in request.args:
        return None
    text = request.args[name]
    try:
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text):
            at = datetime.fromtimestamp(min(float(text), MAX_EPOCH_S), UTC)
        else:
            at = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        at = datetime.min
    if at.tzinfo is None:
        raise Invalid(f"`{name}` is a time in Unix seconds, or as 2026-11-25T12:00:00+00:00.", param=name)
    return at
