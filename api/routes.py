"""Every address of the API: what it takes, what it answers, how it refuses. The document is made from this list."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel

from api import answers
from models.view import JsonObject

JSON, STREAM, HTML = "application/json", "text/event-stream", "text/html"
#: what it means, its media type ("": no body), the model of its body (None: text or bytes)
Said = tuple[str, str, type[BaseModel] | None]


@dataclass(frozen=True)
class Route:
    """One method of one address. name: its operationId."""

    method: str
    path: str
    name: str
    summary: str
    answers: Mapping[int, Said]
    tag: str = "jobs"
    parameters: Sequence[JsonObject] = ()
    headers: Sequence[str] = ()
    refusals: Sequence[int] = (400, 401, 404, 503)
    takes_job: bool = False
    needs_key: bool = True
    path_names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path_names", tuple(re.findall(r"\{(\w+)\}", self.path)))


def _query(name: str, said: str, **schema: object) -> JsonObject:
    return {"name": name, "in": "query", "required": False, "description": said, "schema": schema}


def _header(name: str, said: str, **schema: object) -> JsonObject:
    return {**_query(name, said, **schema), "in": "header"}


_ONCE = _header(
    "Idempotency-Key",
    "The same key and body give the same job, kept for 24 hours.",
    type="string",
    minLength=1,
    maxLength=255,
    pattern="^[!-~]+$",
)
_OPEN: JsonObject = {"needs_key": False, "refusals": ()}
_TICKET: Said = ("The job stands in line, and is on disk.", JSON, answers.Job)

ROUTES: tuple[Route, ...] = (
    Route(
        "post", "/v1/jobs", "submitJob", "Put a request in line", {202: _TICKET}, parameters=(_ONCE,), takes_job=True,
        headers=("Location", "Idempotent-Replayed"), refusals=(400, 401, 404, 408, 409, 413, 415, 422, 429, 503),
    ),
    Route(
        "get", "/v1/jobs", "listJobs", "List your jobs, newest first", {200: ("One page of jobs, without results.", JSON, answers.JobList)},
        parameters=(
            _query("limit", "Jobs on a page.", type="integer", minimum=1, maximum=100, default=20),
            _query("after", "The last id of the page before.", type="string"),
            _query("status", "Only jobs in this state.", type="string", enum=list(answers.SHOWN)),
        ),
    ),
    Route(
        "get", "/v1/jobs/{id}", "getJob", "Look at a job, or wait for it",
        {200: ("The job.", JSON, answers.Job), 304: ("It is as you know it.", "", None)},
        parameters=(
            _query("wait", "Answer when the job has ended, or after so many seconds.", type="number", minimum=0, default=0),
            _header("If-None-Match", "The ETag you have.", type="string"),
        ),
        headers=("ETag",),
    ),
    Route(
        "get", "/v1/jobs/{id}/events", "followJob", "Follow a job",
        {
            200: ("Server-sent events: one for each event of the job (its data is an Event) and `queue` when it moves up.", STREAM, None),
            204: ("You have seen its last event.", "", None),
        },
        parameters=(
            _header("Last-Event-ID", "Go on after this event.", type="string", pattern="^[0-9]{1,9}$"),
            _query("last_event_id", "The same, for those who cannot send headers.", type="string", pattern="^[0-9]{1,9}$"),
        ),
        refusals=(400, 401, 404, 429, 503),
    ),
    Route(
        "post", "/v1/jobs/{id}/cancel", "cancelJob", "Cancel a job",
        {200: ("It is cancelled.", JSON, answers.Job), 202: ("It runs, and has been told to stop.", JSON, answers.Job)},
        refusals=(400, 401, 404, 409, 503),
    ),
    Route(
        "post", "/v1/jobs/{id}/retry", "retryJob", "Ask the same once more", {202: ("A new job stands in line.", JSON, answers.Job)},
        parameters=(_ONCE,), headers=("Location", "Idempotent-Replayed"), refusals=(400, 401, 404, 409, 422, 429, 503),
    ),
    Route(
        "get", "/v1/artifacts/{id}", "getArtifact", "Fetch a picture", {200: ("The picture's bytes.", "image/*", None)}, tag="artifacts",
        parameters=(
            {**_query("expires", "From the job's link.", type="string"), "required": True},
            {**_query("signature", "From the job's link.", type="string"), "required": True},
        ),
        needs_key=False, refusals=(404, 503),
    ),
    Route("get", "/healthz", "isAlive", "Is this process alive?", {200: ("It is.", JSON, answers.Health)}, tag="health", **_OPEN),
    Route(
        "get", "/readyz", "isReady", "Can it serve?",
        {200: ("It can.", JSON, answers.Health), 503: ("It cannot: `gone` says why.", JSON, answers.Health)}, tag="health", **_OPEN,
    ),
    Route("get", "/openapi.json", "getDocument", "This document", {200: ("OpenAPI 3.1.", JSON, None)}, tag="docs", **_OPEN),
    Route("get", "/docs", "getDocs", "This document as a page", {200: ("The page.", HTML, None)}, tag="docs", **_OPEN),
    Route("get", "/", "getHome", "Leads to /docs", {302: ("See /docs.", "", None)}, tag="docs", **_OPEN),
)  # fmt: skip
