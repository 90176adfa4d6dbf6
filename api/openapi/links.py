"""OpenAPI links: the operations that take an id from a response."""

from __future__ import annotations

from collections.abc import Mapping

from models.platform.wire import JsonObject

_MADE = "$response.body#/id"
_FIRST = "$response.body#/data/0/id"
_SAME = "$request.path.id"
_JOB = ("getJob", "followJob", "streamJob", "getRawAnswer", "cancelJob", "retryJob", "listJobDeliveries")
_ENDPOINT = (
    "getWebhookEndpoint", "updateWebhookEndpoint", "deleteWebhookEndpoint", "rotateWebhookSecret", "testWebhookEndpoint", "listDeliveries",
    "redeliverSince",
)  # fmt: skip
_COMPLETION = ("getChatCompletion", "updateChatCompletion", "deleteChatCompletion", "listChatCompletionMessages")
_SESSION = ("getSession", "updateSession", "deleteSession", "listMessages", "attachFiles")


def of_operation(operation: str, status: int) -> JsonObject:
    """Returns the links of an operation's response; most have none."""
    return dict(_LINKS.get((operation, status), {}))


def _to(*operations: str, **parameters: str) -> JsonObject:
    return {name: {"operationId": name, "parameters": parameters} for name in operations}


_LINKS: Mapping[tuple[str, int], JsonObject] = {
    **{(name, 202): _to(*_JOB, id=_MADE) for name in ("submitJob", "retryJob", "cancelJob")},
    **{(name, 202): _to("getJob", "followJob", "streamJob", "cancelJob", id=_MADE) for name in (
        "createChatCompletion", "createImage", "createImageEdit", "createEmbedding", "createModeration", "listModels", "retrieveModel",
    )},
    ("listJobs", 200): {**_to(*_JOB, id=_FIRST), **_to("listJobs", after="$response.body#/last_id")},
    ("createWebhookEndpoint", 200): _to(*_ENDPOINT, id=_MADE),
    ("listWebhookEndpoints", 200): _to(*_ENDPOINT, id=_FIRST),
    ("listDeliveries", 200): _to("redeliver", id=_SAME, delivery=_FIRST),
    ("testWebhookEndpoint", 200): _to("redeliver", id=_SAME, delivery="$response.body#/delivery_id"),
    ("listJobDeliveries", 200): _to("redeliverOfJob", id=_SAME, delivery=_FIRST),
    ("listChatCompletions", 200): {**_to(*_COMPLETION, id=_FIRST), **_to("listChatCompletions", after="$response.body#/last_id")},
    ("createSession", 201): _to(*_SESSION, id=_MADE),
    ("listSessions", 200): _to(*_SESSION, id=_FIRST),
    ("proAsk", 200): _to("proFetch", id="$response.body#/jobId", apiKey="$request.body#/apiKey"),
}  # fmt: skip
