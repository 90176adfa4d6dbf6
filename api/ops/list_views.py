"""What operators see: lanes, pools, keys, flows, jobs, credentials and workers, as they are now."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from flask import Response, request

from api.access import operator_auth
from api.http import paging, render
from models.config.settings import settings
from models.database import db
from models.jobs import workers as fleet
from models.jobs.states import Status
from models.ops import flow_report, job_search, key_report, lane_report, pool_report
from models.ops.job_search import JobQuery
from models.ops.lane_report import LaneFilter
from models.platform import wire
from models.platform.errors import Invalid

routes = operator_auth.blueprint("sights")

NUMBER_MOST = 2**63 - 1
# Of the 21st century: what is before or after it was mistyped.
EPOCH_MOST = 4_102_444_800


@routes.get("/lanes")
@operator_auth.requires("read")
def lanes() -> Response:
    """The lines."""
    which = LaneFilter(
        pool=_text("pool"), model=_text("model"), is_busy=_flag("busy") or False,
        by_waiting=_one_of("order", ("id", "waiting")) == "waiting",
    )  # fmt: skip
    limit, after = paging.parse_limit(), paging.parse_after(_number)
    with db.begin() as session:
        found = lane_report.list_lanes(session, which, limit=limit, after=after)
    return paging.list_response(found[:limit], has_more=len(found) > limit)


@routes.get("/pools")
@operator_auth.requires("read")
def pools() -> Response:
    """The pools."""
    limit, after, kind = paging.parse_limit(), paging.parse_after(_number), _one_of("kind", ("own", "issued"))
    with db.begin() as session:
        found = pool_report.list_pools(session, limit=limit, after=after, kind=kind)
    return paging.list_response(found[:limit], has_more=len(found) > limit)


@routes.get("/keys")
@operator_auth.requires("read")
def keys() -> Response:
    """The callers' keys, without themselves."""
    limit, after, kind = paging.parse_limit(), paging.parse_after(_number), _one_of("kind", ("own", "issued"))
    with db.begin() as session:
        found = key_report.list_keys(session, limit=limit, after=after, kind=kind, name=_text("name"))
    return paging.list_response(found[:limit], has_more=len(found) > limit)


@routes.get("/credentials")
@operator_auth.requires("read")
def credentials() -> Response:
    """The upstream keys, without themselves."""
    limit, after = paging.parse_limit(), paging.parse_after(_number)
    with db.begin() as session:
        found = pool_report.list_credentials(session, limit=limit, after=after, pool=_text("pool"), is_parked=_flag("parked"))
    return paging.list_response(found[:limit], has_more=len(found) > limit)


@routes.get("/flows")
@operator_auth.requires("read")
def flows() -> Response:
    """Who waits in the lines."""
    limit, lane, after = paging.parse_limit(), _maybe_number("lane"), _text("after")
    with db.begin() as session:
        found = flow_report.list_flows(session, lane=lane, user=_text("user"))
    begin = next((n + 1 for n, one in enumerate(found) if one["id"] == after), len(found)) if after is not None else 0
    return paging.list_response(found[begin : begin + limit], has_more=len(found) > begin + limit)


@routes.get("/jobs")
@operator_auth.requires("read")
def jobs() -> Response:
    """The jobs that fit."""
    limit, after = paging.parse_limit(), paging.parse_after(wire.parse_id)
    status = _one_of("status", tuple(Status))
    wanted = JobQuery(
        id=wire.parse_id(request.args["id"]) if "id" in request.args else None, key=_text("caller"),
        user=_text("user"), status=Status(status) if status else None, lane=_maybe_number("lane"),
        pool=_text("pool"), model=_text("model"), since=_time("since"), until=_time("until"),
    )  # fmt: skip
    with db.begin() as session:
        found = job_search.search(session, wanted, limit=limit, after=after)
    last = wire.public_id(found.next_after) if found.next_after else found.jobs[-1]["id"] if found.jobs else None
    first = found.jobs[0]["id"] if found.jobs else None
    return render.json_response(
        {"object": "list", "data": found.jobs, "has_more": found.next_after is not None, "first_id": first, "last_id": last}
    )


@routes.get("/workers")
@operator_auth.requires("read")
def workers() -> Response:
    """The worker processes."""
    limit = paging.parse_limit()
    with db.begin() as session:
        found = fleet.list_workers(session, limit=limit, after=_text("after"), silent_s=settings().heartbeat_s * 3)
    return paging.list_response(found[:limit], has_more=len(found) > limit)


def _number(said: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", said) or int(said) > NUMBER_MOST:
        raise Invalid("`after` is the last id of the page before.", param="after")
    return int(said)


def _maybe_number(name: str) -> int | None:
    if name not in request.args:
        return None
    said = request.args[name]
    if not re.fullmatch(r"[0-9]{1,19}", said) or int(said) > NUMBER_MOST:
        raise Invalid(f"`{name}` is a number: /ops/lanes has them.", param=name)
    return int(said)


def _text(name: str) -> str | None:
    said = request.args.get(name)
    if said is not None and "\0" in said:
        raise Invalid(f"`{name}` cannot hold a NUL character.", param=name)
    return said


def _flag(name: str) -> bool | None:
    said = _one_of(name, ("true", "false"))
    return None if said is None else said == "true"


def _one_of(name: str, choices: tuple[str, ...]) -> str | None:
    said = request.args.get(name)
    if said is not None and said not in choices:
        raise Invalid(f"`{name}` is one of: {', '.join(choices)}.", param=name)
    return said


def _time(name: str) -> datetime | None:
    """Unix seconds, or ISO 8601 with a time zone."""
    if name not in request.args:
        return None
    said = request.args[name]
    try:
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", said):
            at = datetime.fromtimestamp(min(float(said), EPOCH_MOST), UTC)
        else:
            at = datetime.fromisoformat(said)
    except (ValueError, OverflowError):
        at = datetime.min
    if at.tzinfo is None:
        raise Invalid(f"`{name}` is a time in Unix seconds, or as 2026-11-25T12:00:00+00:00.", param=name)
    return at
