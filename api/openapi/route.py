"""What one address of the API takes, answers and refuses, as the document needs it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel

from api.submit import options, schemas
from models.platform.wire import JsonObject

JSON, STREAM, HTML = "application/json", "text/event-stream", "text/html"
#: what it means, its media type ("": no body), the model of its body (None: text or bytes)
Said = tuple[str, str, type[BaseModel] | None]


@dataclass(frozen=True)
class Route:
    """One method of one address. name: its operationId. takes: the schema of the body for each media type. streams: what its 200 is
    when a stream was asked for. events: the models of what the events of its own stream say. scheme: whose token it wants."""

    method: str
    path: str
    name: str
    summary: str
    answers: Mapping[int, Said]
    tag: str = "jobs"
    parameters: Sequence[JsonObject] = ()
    headers: Sequence[str] = ()
    refusals: Sequence[int | str] = (400, 401, 404, 503)
    takes: Mapping[str, JsonObject] = field(default_factory=dict)
    streams: str = ""
    events: Sequence[type[BaseModel]] = ()
    needs_key: bool = True
    scheme: str = "bearer"
    path_names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path_names", tuple(re.findall(r"\{(\w+)\}", self.path)))


def query(name: str, said: str, **schema: object) -> JsonObject:
    return {"name": name, "in": "query", "required": False, "description": said, "schema": schema}


def header(name: str, said: str, **schema: object) -> JsonObject:
    return {**query(name, said, **schema), "in": "header"}


ONCE = header(
    "Idempotency-Key",
    "The same key and body give the same job, kept for 24 hours.",
    type="string",
    minLength=1,
    maxLength=255,
    pattern="^[!-~]+$",
)


def _control(name: str, at: str) -> JsonObject:
    schema = dict(schemas.Controls.model_json_schema()["properties"][at])
    # A header that says nothing is left out: there is no null.
    (kind,) = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    return header(name, f"{schema['description']} Beats the body.", **{word: kind[word] for word in kind.keys() - _OF_FIELDS})


#: What a field of a body has and a header's value does not.
_OF_FIELDS = {"title", "default", "description"}
#: the headers that say how a job waits and runs
CONTROLS = tuple(_control(name, at) for name, at in options.HEADERS.items())
