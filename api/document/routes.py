"""The list of all described routes; api/document/openapi.py builds the document from it."""

from __future__ import annotations

from api.billing import routes as billing_routes
from api.legacy import routes as legacy_routes
from api.openai import routes as openai_routes
from api.openapi.route import HTML, IDEMPOTENCY_KEY, JOB_HEADERS, JSON, PAGING, STREAM, ResponseSpec, Route, header, query
from api.ops import action_routes, list_routes
from api.sessions import routes as session_routes
from api.submit import responses
from api.webhooks import routes as webhook_routes
from models.content.endpoints import CHAT
from models.platform.wire import JsonObject

_OPEN: JsonObject = {"needs_key": False, "errors": ()}
_QUEUED: ResponseSpec = ("The job is queued, and stored durably.", JSON, responses.Job)
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
        "post", "/v1/jobs", "submitJob", "Submit a request as a job", {202: _QUEUED}, parameters=(IDEMPOTENCY_KEY, *JOB_HEADERS),
        body={JSON: _SUBMIT},
        headers=("Location", "Idempotent-Replayed"), errors=(400, 401, 404, 408, 409, 413, 415, 422, 429, 503),
    ),
    Route(
        "get", "/v1/jobs", "listJobs", "List your jobs, newest first",
        {200: ("One page of jobs, without results.", JSON, responses.JobList)},
        parameters=(
            *PAGING,
            query("status", "Only jobs in this state.", type="string", enum=list(responses.SHOWN)),
        ),
    ),
    Route(
        "get", "/v1/jobs/{id}", "getJob", "Retrieve a job, or wait for it",
        {200: ("The job.", JSON, responses.Job), 304: ("Unchanged.", "", None)},
        parameters=(
            query("wait", "Respond when the job ends, or after this many seconds if a waiter is free.",
                  type="number", minimum=0, default=0),
            header("If-None-Match", "The ETag of your copy.", type="string"),
        ),
        headers=("ETag", "Retry-After"),
    ),
    Route(
        "get", "/v1/jobs/{id}/events", "followJob", "Stream a job's events",
        {
            200: ("Server-sent events: each event of the job (its data is an Event), and `queue` when its position changes.", STREAM, None),
            204: ("There are no events after this one.", "", None),
        },
        parameters=(
            header("Last-Event-ID", "Resume after this event.", type="string", pattern="^[0-9]{1,9}$"),
            query("last_event_id", "The same, for clients that cannot send headers.", type="string", pattern="^[0-9]{1,9}$"),
        ),
        errors=(400, 401, 404, 429, 503), events=(responses.Event, responses.QueueEvent, responses.Error),
    ),
    Route(
        "get", "/v1/jobs/{id}/stream", "streamJob", "Stream a job's response from its beginning",
        {200: ("The upstream's events, in its own shape, with comments while the job waits, then [DONE].", STREAM, None)},
        errors=(400, 401, 404, 409, 429, 503),
    ),
    Route(
        "get", "/v1/jobs/{id}/raw", "getRawAnswer", "Download the response of a failed call that is not JSON",
        {200: ("The bytes, as a download; `X-Nowserving-Content-Type` is the upstream's content type.", "application/octet-stream", None)},
        headers=("X-Nowserving-Content-Type", "Content-Disposition"), errors=(400, 401, 404, 503),
    ),
    Route(
        "post", "/v1/jobs/{id}/cancel", "cancelJob", "Cancel a job",
        {200: ("The job is cancelled.", JSON, responses.Job), 202: ("The job runs, and was signalled to stop.", JSON, responses.Job)},
        errors=(400, 401, 404, 409, 503),
    ),
    Route(
        "post", "/v1/jobs/{id}/retry", "retryJob", "Retry a job as a new one", {202: ("The new job is queued.", JSON, responses.Job)},
        parameters=(IDEMPOTENCY_KEY,), headers=("Location", "Idempotent-Replayed"), errors=(400, 401, 404, 409, 422, 429, 503),
    ),
    Route(
        "get", "/v1/artifacts/{id}", "getArtifact", "Download an image",
        {
            200: ("The image.", "image/*", None),
            206: ("The range that `Range` names.", "image/*", None),
            304: ("Unchanged.", "", None),
        },
        tag="artifacts", headers=("ETag", "Accept-Ranges", "Content-Range", "Content-Disposition"),
        parameters=(
            {**query("expires", "From the job's link.", type="string"), "required": True},
            {**query("signature", "From the job's link.", type="string"), "required": True},
            header("Range", "One range of bytes.", type="string"),
            header("If-None-Match", "The ETag of your copy.", type="string"),
        ),
        needs_key=False, errors=(404, 416, 503),
    ),
    *action_routes.ROUTES,
    *legacy_routes.ROUTES,
    *list_routes.ROUTES,
    Route(
        "get", "/healthz", "isAlive", "Check that this process is alive",
        {200: ("It is alive.", JSON, responses.Health)}, tag="health", **_OPEN,
    ),
    Route(
        "get", "/readyz", "isReady", "Check that this process can serve",
        {200: ("It can serve.", JSON, responses.Health), 503: ("It cannot serve: `gone` says why.", JSON, responses.Health)},
        tag="health", **_OPEN,
    ),
    Route(
        "get", "/healthz/deep", "isWorking", "Check that jobs are processed",
        {200: ("Jobs are processed.", JSON, responses.Health), 503: ("They are not: `gone` says what is missing.", JSON, responses.Health)},
        tag="health", **_OPEN,
    ),
    Route(
        "get", "/metrics", "getMetrics", "Retrieve the API's metrics for Prometheus",
        {200: ("Prometheus' text format.", "text/plain", None)},
        tag="health", needs_key=False, errors=(401,),
    ),
    Route("get", "/openapi.json", "getDocument", "Retrieve this document", {200: ("OpenAPI 3.1.", JSON, None)}, tag="docs", **_OPEN),
    Route("get", "/docs", "getDocs", "Show this document as a page", {200: ("The page.", HTML, None)}, tag="docs", **_OPEN),
    Route(
        "get", "/", "getPage", "Show the chat page",
        {
            200: ("The page.", HTML, None),
            302: ("The page was not built: see /docs.", "", None),
            304: ("Unchanged.", "", None),
        },
        tag="docs", **_OPEN,
    ),
    Route("get", "/icon.svg", "getIcon", "Retrieve the page's icon", {200: ("The icon.", "image/svg+xml", None)}, tag="docs", **_OPEN),
    Route(
        "get", "/assets/{id}", "getAsset", "Retrieve a file of the chat page", {200: ("The file.", "*/*", None)}, tag="docs",
        needs_key=False,
        errors=(404,),
    ),
)  # fmt: skip
