"""Descriptions of the operator actions for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pydantic import BaseModel

from api.openapi.route import JSON, PAGING, Route, json_body
from api.ops import schemas as ops_schemas

route = partial(Route, tag="operators", scheme="operator", errors=(400, 401, 403, 404, 503))

TARGETS = ("pool", "lane", "key", "flow", "credential")
SUMMARIES = {
    "pause": "Pause a {}: no job starts; running jobs end",
    "resume": "Resume a {}",
    "drain": "Drain a {}: no new jobs; waiting jobs are served",
}


def action(
    path: str, name: str, summary: str, body: type[BaseModel], *, status: int = 200, response: type[BaseModel] | None = None
) -> Route:
    """Describes an operator action."""
    responses = {status: ("Done; the new state.", JSON, response)}
    return route(
        "post", f"/ops/{path}", name, summary, responses, body=json_body(body), errors=(400, 401, 403, 404, 409, 413, 415, 429, 503)
    )


def _pause_actions() -> Iterator[Route]:
    for target in TARGETS:
        for verb, summary in SUMMARIES.items():
            yield action(f"{target}s/{{id}}/{verb}", f"{verb}{target.title()}", summary.format(target), ops_schemas.Order)


ROUTES: tuple[Route, ...] = (
    route("get", "/ops/audit", "listAudit", "List the audit log", {200: ("One page.", JSON, ops_schemas.AuditList)}, parameters=PAGING),
    *_pause_actions(),
    action("credentials/{id}/limits", "setLimits", "Change a credential's limits", ops_schemas.LimitsOrder),
    action("credentials/{id}/change", "changeCredential", "Change a credential's weight, address or secret", ops_schemas.CredentialChange),
    action("credentials/{id}/retire", "retireCredential", "Retire a credential", ops_schemas.Order),
    action("pools/{id}/credentials", "addCredential", "Add an upstream key to a pool", ops_schemas.NewCredential, status=201),
    action("keys/{id}/caps", "capKey", "Set the caps of a key", ops_schemas.CapsOrder),
    action("flows/{id}/caps", "capFlow", "Set the caps of a user in a lane", ops_schemas.CapsOrder),
    action("flows/{id}/weight", "weighFlow", "Change a user's share of a lane", ops_schemas.WeightOrder),
    action("keys/{id}/weight", "weighKey", "Change a key's share of its pool's lanes", ops_schemas.WeightOrder),
    action("lanes/{id}/rebuild", "rebuildLane", "Rebuild a lane's limiter state and counters", ops_schemas.Order, status=202),
    action("jobs/{id}/boost", "boostJob", "Move a job to the head of its lane", ops_schemas.Order),
    action("jobs/{id}/priority", "prioritiseJob", "Change a waiting job's priority", ops_schemas.PriorityOrder),
    action("jobs/{id}/cancel", "cancelAnyJob", "Cancel a job", ops_schemas.Order),
    action("jobs/{id}/retry", "retryAnyJob", "Retry a job for its caller", ops_schemas.Order, status=202),
    action("jobs/purge", "purgeJobs", "Cancel waiting jobs by filter", ops_schemas.PurgeOrder, response=ops_schemas.Purge),
    action("jobs/retry", "retryJobs", "Retry failed jobs by filter", ops_schemas.RetryOrder, status=202, response=ops_schemas.Retries),
)
