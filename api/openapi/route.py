"""The description of one API route: what it takes, its responses and its errors, for the OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel

from api.submit import options, schemas
from models.platform.wire import JsonObject

JSON, STREAM, HTML = "application/json", "text/event-stream", "text/html"
# Description, media type ("": no body), model of the body (None: text or bytes).
ResponseSpec = tuple[str, str, type[BaseModel] | None]


@dataclass(frozen=True)
class Route:
    """One method of one path.

    name: the operationId. body: the schema of the request body by media type. stream: describes the 200 of a request for a stream.
    events: the models of the events of an event stream. scheme: the kind of token.
    """

    method: str
    path: str
    name: str
    summary: str
    responses: Mapping[int, ResponseSpec]
    tag: str = "jobs"
    parameters: Sequence[JsonObject] = ()
    headers: Sequence[str] = ()
    errors: Sequence[int | str] = (400, 401, 404, 503)
    body: Mapping[str, JsonObject] = field(default_factory=dict)
    stream: str = ""
    events: Sequence[type[BaseModel]] = ()
    needs_key: bool = True
    scheme: str = "bearer"
    path_names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path_names", tuple(re.findall(r"\{(\w+)\}", self.path)))


def query(name: str, description: str, **schema: object) -> JsonObject:
    """Describes a query parameter."""
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def header(name: str, description: str, **schema: object) -> JsonObject:
    """Describes a request header."""
    return {**query(name, description, **schema), "in": "header"}


def json_body(model: type[BaseModel], **more: object) -> dict[str, JsonObject]:
    """Describes a JSON request body."""
    return {JSON: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}, **more}}


PAGING = (
    query("limit", "Entries per page.", type="integer", minimum=1, maximum=100, default=20),
    query("after", "The last id of the page before.", type="string"),
)
IDEMPOTENCY_KEY = header(
    "Idempotency-Key",
    "The same key and body return the same job, for 24 hours.",
    type="string",
    minLength=1,
    maxLength=255,
    pattern="^[!-~]+$",
)
# Keywords of a body field that a header's schema does not have.
_BODY_KEYWORDS = {"title", "default", "description"}


def _job_header(name: str, option: str) -> JsonObject:
    schema = dict(schemas.Controls.model_json_schema()["properties"][option])
    # A header without a value is omitted: there is no null.
    (kind,) = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    return header(name, f"{schema['description']} Overrides the body.", **{word: kind[word] for word in kind.keys() - _BODY_KEYWORDS})


# Headers that set how a job waits and runs.
JOB_HEADERS = tuple(_job_header(name, option) for name, option in options.HEADERS.items())
