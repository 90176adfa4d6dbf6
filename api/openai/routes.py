"""Descriptions of the OpenAI routes for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from pydantic import BaseModel

from api.openapi.route import IDEMPOTENCY_KEY, JOB_HEADERS, JSON, PAGING, ResponseSpec, Route, header, query
from api.stored import responses as stored_responses
from api.stored import schemas as stored_schemas
from api.submit import openai_requests, responses
from models.platform.wire import JsonObject

FORM = "multipart/form-data"
ASYNC = header(
    "Prefer", "`respond-async`: 202 and a job at once; with `, wait=20`: the answer if it is ready within so many seconds.", type="string"
)
HEADERS = (
    "X-Nowserving-Job-Id", "X-Nowserving-Waited-Ms", "X-Nowserving-Resumed", "openai-processing-ms", "Idempotent-Replayed",
    "Preference-Applied", "Location", "x-ratelimit-limit-requests", "x-ratelimit-limit-tokens", "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens", "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens",
)  # fmt: skip
RESPONSES: Mapping[int, ResponseSpec] = MappingProxyType({
    200: ("The upstream's own answer, unchanged. After a grace time, keep-alive spaces come before it.", JSON, None),
    202: ("As preferred: the job is queued.", JSON, responses.Job),
})  # fmt: skip
ERRORS = (400, 401, 408, 409, 413, 415, 422, 429, 502, 503, 504, "default")
CHAT_STREAM = "The upstream's events, with comments while the job waits, then [DONE]. A late failure is a chunk with `error`."
IMAGE_STREAM = "The upstream's events, with comments while the job waits, then [DONE]. A late failure is an `error` event."
HELLO: JsonObject = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hello"}]}
_PAGING = (
    *PAGING,
    query("order", "Oldest or newest first.", type="string", enum=["asc", "desc"], default="asc"),
)
_FILTERS = (
    query("model", "Only completions of this model, as in the request or in the answer.", type="string"),
    {
        **query("metadata", "Only completions with all of these pairs, as `metadata[name]=value`.", type="object",
                maxProperties=16, additionalProperties={"type": "string", "maxLength": 512}),
        "style": "deepObject", "explode": True,
    },
)  # fmt: skip
_COMPLETION: ResponseSpec = ("The upstream's answer, with its metadata.", JSON, stored_responses.StoredCompletion)
_FILE: JsonObject = {"type": "string", "format": "binary"}
_EDIT: JsonObject = {
    "type": "object",
    "description": "One or more images as file parts `image` or `image[]`; our own fields as `nowserving[priority]`.",
    "required": ["prompt"],
    "properties": {
        "prompt": {"type": "string", "minLength": 1, "maxLength": 32_000},
        "image": _FILE,
        "image[]": {"type": "array", "items": _FILE},
        "mask": _FILE,
        "model": {"type": "string"},
        "n": {"type": "integer", "minimum": 1, "maximum": 10},
        "response_format": {"type": "string", "enum": ["b64_json", "url"]},
        "stream": {"type": "boolean"},
        "user": {"type": "string"},
    },
}


def _json(body: type[BaseModel], **more: object) -> JsonObject:
    inside = {"type": "object", "properties": {"nowserving": {"$ref": "#/components/schemas/Inside"}}}
    return {"schema": {"allOf": [{"$ref": f"#/components/schemas/{body.__name__}"}, inside]}, **more}


_post = partial(
    Route, "post", responses=RESPONSES, tag="openai", parameters=(ASYNC, IDEMPOTENCY_KEY, *JOB_HEADERS), headers=HEADERS, errors=ERRORS
)
_stored = partial(Route, tag="openai")
_models = partial(Route, "get", tag="openai", headers=("Age", "X-Nowserving-Refresh-Error"), errors=(400, 401, 404, 503, "default"))

ROUTES: tuple[Route, ...] = (
    _post(
        "/v1/chat/completions", "createChatCompletion", "Create a chat completion",
        body={JSON: _json(openai_requests.ChatBody, example=HELLO)}, stream=CHAT_STREAM,
    ),
    _stored(
        "get", "/v1/chat/completions", "listChatCompletions", "List your stored chat completions",
        {200: ("One page.", JSON, stored_responses.StoredCompletionList)}, parameters=(*_PAGING, *_FILTERS),
    ),
    _stored("get", "/v1/chat/completions/{id}", "getChatCompletion", "Retrieve a stored chat completion", {200: _COMPLETION}),
    _stored(
        "post", "/v1/chat/completions/{id}", "updateChatCompletion", "Update the metadata of a stored chat completion", {200: _COMPLETION},
        body={JSON: {"schema": {"$ref": f"#/components/schemas/{stored_schemas.CompletionChange.__name__}"},
                      "example": {"metadata": {"topic": "tea"}}}},
        errors=(400, 401, 404, 408, 413, 415, 503),
    ),
    _stored(
        "delete", "/v1/chat/completions/{id}", "deleteChatCompletion", "Delete a stored chat completion with its request",
        {200: ("Deleted. Its job stays without bodies; its usage stays.", JSON, stored_responses.StoredCompletionDeleted)},
    ),
    _stored(
        "get", "/v1/chat/completions/{id}/messages", "listChatCompletionMessages", "List the messages of a stored chat completion",
        {200: ("One page.", JSON, stored_responses.StoredMessageList)}, parameters=_PAGING,
    ),
    _post(
        "/v1/images/generations", "createImage", "Generate images",
        body={JSON: _json(openai_requests.ImageBody, example={"prompt": "a cat", "response_format": "url"})}, stream=IMAGE_STREAM,
    ),
    _post(
        "/v1/images/edits", "createImageEdit", "Edit images",
        body={FORM: {"schema": _EDIT}, JSON: _json(openai_requests.EditBody)}, stream=IMAGE_STREAM,
    ),
    _post("/v1/embeddings", "createEmbedding", "Create embeddings", body={JSON: _json(openai_requests.EmbeddingBody)}),
    _post("/v1/moderations", "createModeration", "Classify texts as harmful or not", body={JSON: _json(openai_requests.ModerationBody)}),
    _models("/v1/models", "listModels", "List the models", {200: ("The upstream's list, from a stored copy.", JSON, None)}),
    _models(
        "/v1/models/{model}", "retrieveModel", "Retrieve a model; its name may contain slashes",
        {200: ("The upstream's entry, from a stored copy of its list.", JSON, None)},
    ),
)  # fmt: skip
