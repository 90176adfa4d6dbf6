"""The addresses of operators."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pydantic import BaseModel

from api.openapi.route import JSON, Route, query
from api.ops import schemas as ops_schemas

PAGE = (
    query("limit", "Entries on a page.", type="integer", minimum=1, maximum=100, default=20),
    query("after", "The last id of the page before.", type="string"),
)
route = partial(Route, tag="operators", scheme="operator", refusals=(400, 401, 403, 404, 503))

THINGS = ("pool", "lane", "key", "flow", "credential")
SAID = {
    "pause": "Nothing of this {} starts; what runs ends",
    "resume": "This {} goes on",
    "drain": "This {} takes nothing new; what waits is served",
}


def lever(
    path: str, name: str, summary: str, takes: type[BaseModel], *, status: int = 200, answers: type[BaseModel] | None = None
) -> Route:
    said = {status: ("Done; how it is now.", JSON, answers)}
    schema = {JSON: {"schema": {"$ref": f"#/components/schemas/{takes.__name__}"}}}
    return route("post", f"/ops/{path}", name, summary, said, takes=schema, refusals=(400, 401, 403, 404, 409, 413, 415, 429, 503))


def _halts() -> Iterator[Route]:
    for thing in THINGS:
        for verb, said in SAID.items():
            yield lever(f"{thing}s/{{id}}/{verb}", f"{verb}{thing.title()}", said.format(thing), ops_schemas.Order)


ROUTES: tuple[Route, ...] = (
    route("get", "/ops/audit", "listAudit", "What operators did", {200: ("One page.", JSON, ops_schemas.AuditList)}, parameters=PAGE),
    *_halts(),
    lever("credentials/{id}/limits", "setLimits", "Change what a credential may do", ops_schemas.LimitsOrder),
    lever("credentials/{id}/change", "changeCredential", "Change its weight, address or secret", ops_schemas.CredentialChange),
    lever("credentials/{id}/retire", "retireCredential", "Give a credential no more jobs", ops_schemas.Order),
    lever("pools/{id}/credentials", "addCredential", "Put an upstream key behind a pool", ops_schemas.NewCredential, status=201),
    lever("keys/{id}/caps", "capKey", "Cap what a key may have of the line", ops_schemas.CapsOrder),
    lever("flows/{id}/caps", "capFlow", "Cap what a user may have of a lane", ops_schemas.CapsOrder),
    lever("flows/{id}/weight", "weighFlow", "Change a user's share of a lane", ops_schemas.WeightOrder),
    lever("keys/{id}/weight", "weighKey", "Change a key's share of its pool's lanes", ops_schemas.WeightOrder),
    lever("lanes/{id}/rebuild", "rebuildLane", "Make limiter state and counters again", ops_schemas.Order, status=202),
    lever("jobs/{id}/boost", "boostJob", "Put a job at the head of its lane", ops_schemas.Order),
    lever("jobs/{id}/priority", "prioritiseJob", "Change a waiting job's priority", ops_schemas.PriorityOrder),
    lever("jobs/{id}/cancel", "cancelAnyJob", "Cancel a job", ops_schemas.Order),
    lever("jobs/{id}/retry", "retryAnyJob", "Ask the same once more for its caller", ops_schemas.Order, status=202),
    lever("jobs/purge", "purgeJobs", "Cancel waiting jobs by filter", ops_schemas.PurgeOrder, answers=ops_schemas.Purge),
    lever("jobs/retry", "retryJobs", "Retry failed jobs by filter", ops_schemas.RetryOrder, status=202, answers=ops_schemas.Retries),
)
