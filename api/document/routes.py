"""Every address of the API: what it takes, what it answers, how it refuses. The document is made from this list."""

from __future__ import annotations

from api.billing import routes as billing_routes
from api.legacy import routes as legacy_routes
from api.openai import routes as openai_routes
from api.openapi.route import CONTROLS, HTML, JSON, ONCE, STREAM, Route, Said, header, query
from api.ops import action_routes, list_routes
from api.sessions import routes as session_routes
from api.submit import responses as answers
from api.webhooks import routes as webhook_routes
from models.content.endpoints import CHAT
from models.platform.wire import JsonObject

_OPEN: JsonObject = {"needs_key": False, "refusals": ()}
_TICKET: Said = ("The job stands in line, and is on disk.", JSON, answers.Job)
_SUBMIT: JsonObject = {
    "schema": {"$ref": "#/components/schemas/Submit"},
    "example": {"endpoint": CHAT, "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}},
}

ROUTES: tuple[Route, ...] = (
    *openai_routes.ROUTES,
    *session_routes.ROUTES,
    *webhook_routes.ROUTES,
    *billing_routes.ROUTES,
    Route(
        "post", "/v1/jobs", "submitJob", "Put a request in line", {202: _TICKET}, parameters=(ONCE, *CONTROLS), takes={JSON: _SUBMIT},
        headers=("Location", "Idempotent-Replayed"), refusals=(400, 401, 404, 408, 409, 413, 415, 422, 429, 503),
    ),
    Route(
        "get", "/v1/jobs", "listJobs", "List your jobs, newest first", {200: ("One page of jobs, without results.", JSON, answers.JobList)},
        parameters=(
            query("limit", "Jobs on a page.", type="integer", minimum=1, maximum=100, default=20),
            query("after", "The last id of the page before.", type="string"),
            query("status", "Only jobs in this state.", type="string", enum=list(answers.SHOWN)),
        ),
    ),
    Route(
        "get", "/v1/jobs/{id}", "getJob", "Look at a job, or wait for it",
        {200: ("The job.", JSON, answers.Job), 304: ("It is as you know it.", "", None)},
        parameters=(
            query("wait", "Answer when the job ends, or after so many seconds, if a seat is free.", type="number", minimum=0, default=0),
            header("If-None-Match", "The ETag you have.", type="string"),
        ),
        headers=("ETag", "Retry-After"),
    ),
    Route(
        "get", "/v1/jobs/{id}/events", "followJob", "Follow a job",
        {
            200: ("Server-sent events: one for each event of the job (its data is an Event) and `queue` when it moves up.", STREAM, None),
            204: ("You have seen its last event.", "", None),
        },
        parameters=(
            header("Last-Event-ID", "Go on after this event.", type="string", pattern="^[0-9]{1,9}$"),
            query("last_event_id", "The same, for those who cannot send headers.", type="string", pattern="^[0-9]{1,9}$"),
        ),
        refusals=(400, 401, 404, 429, 503), events=(answers.Event, answers.QueueEvent, answers.Error),
    ),
    Route(
        "get", "/v1/jobs/{id}/stream", "streamJob", "Read a job's stream, from its beginning",
        {200: ("The upstream's events, in its own shape, with comments while the job waits, then [DONE].", STREAM, None)},
        refusals=(400, 401, 404, 409, 429, 503),
    ),
    Route(
        "get", "/v1/jobs/{id}/raw", "getRawAnswer", "Fetch what a failed call answered, where that is no JSON",
        {200: ("Its bytes, to be saved; `X-Nowserving-Content-Type` is what the upstream called them.", "application/octet-stream", None)},
        headers=("X-Nowserving-Content-Type", "Content-Disposition"), refusals=(400, 401, 404, 503),
    ),
    Route(
        "post", "/v1/jobs/{id}/cancel", "cancelJob", "Cancel a job",
        {200: ("It is cancelled.", JSON, answers.Job), 202: ("It runs, and has been told to stop.", JSON, answers.Job)},
        refusals=(400, 401, 404, 409, 503),
    ),
    Route(
        "post", "/v1/jobs/{id}/retry", "retryJob", "Ask the same once more", {202: ("A new job stands in line.", JSON, answers.Job)},
        parameters=(ONCE,), headers=("Location", "Idempotent-Replayed"), refusals=(400, 401, 404, 409, 422, 429, 503),
    ),
    Route(
        "get", "/v1/artifacts/{id}", "getArtifact", "Fetch a picture",
        {
            200: ("The picture's bytes.", "image/*", None),
            206: ("Those of its bytes that `Range` names.", "image/*", None),
            304: ("It is as you know it.", "", None),
        },
        tag="artifacts", headers=("ETag", "Accept-Ranges", "Content-Range", "Content-Disposition"),
        parameters=(
            {**query("expires", "From the job's link.", type="string"), "required": True},
            {**query("signature", "From the job's link.", type="string"), "required": True},
            header("Range", "One range of bytes.", type="string"),
            header("If-None-Match", "The ETag you have.", type="string"),
        ),
        needs_key=False, refusals=(404, 416, 503),
    ),
    *action_routes.ROUTES,
    *legacy_routes.ROUTES,
    *list_routes.ROUTES,
    Route("get", "/healthz", "isAlive", "Is this process alive?", {200: ("It is.", JSON, answers.Health)}, tag="health", **_OPEN),
    Route(
        "get", "/readyz", "isReady", "Can it serve?",
        {200: ("It can.", JSON, answers.Health), 503: ("It cannot: `gone` says why.", JSON, answers.Health)}, tag="health", **_OPEN,
    ),
    Route(
        "get", "/healthz/deep", "isWorking", "Does work get done?",
        {200: ("It does.", JSON, answers.Health), 503: ("It does not: `gone` says what is missing.", JSON, answers.Health)},
        tag="health", **_OPEN,
    ),
    Route(
        "get", "/metrics", "getMetrics", "What this API counts, for Prometheus", {200: ("Prometheus' text format.", "text/plain", None)},
        tag="health", needs_key=False, refusals=(401,),
    ),
    Route("get", "/openapi.json", "getDocument", "This document", {200: ("OpenAPI 3.1.", JSON, None)}, tag="docs", **_OPEN),
    Route("get", "/docs", "getDocs", "This document as a page", {200: ("The page.", HTML, None)}, tag="docs", **_OPEN),
    Route(
        "get", "/", "getPage", "The chat page",
        {
            200: ("The page.", HTML, None),
            302: ("It was not built: see /docs.", "", None),
            304: ("It is as you know it.", "", None),
        },
        tag="docs", **_OPEN,
    ),
    Route("get", "/icon.svg", "getIcon", "The page's icon", {200: ("The icon.", "image/svg+xml", None)}, tag="docs", **_OPEN),
    Route(
        "get", "/assets/{id}", "getAsset", "A file of the chat page", {200: ("The file.", "*/*", None)}, tag="docs", needs_key=False,
        refusals=(404,),
    ),
)  # fmt: skip
