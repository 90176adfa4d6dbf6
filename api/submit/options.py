"""The controls of a request to an OpenAI route: our headers, and the `nowserving` object of the body. The upstream never sees them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from werkzeug.datastructures import Headers

from api.http import json_text
from api.submit import schemas
from api.submit.schemas import Controls, Inside
from models.platform.errors import Invalid
from models.platform.wire import JsonObject

BODY_FIELD = "nowserving"
IDEMPOTENCY_HEADER = "Idempotency-Key"
HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "X-Nowserving-Priority": "priority",
        "X-Nowserving-Expires-In": "expires_in_s",
        "X-Nowserving-Timeout": "timeout_s",
        "X-Nowserving-User": "user",
        "X-Nowserving-Webhook-Url": "webhook_url",
    }
)
# Short names of fields, in the `nowserving` object.
SHORT: Mapping[str, str] = MappingProxyType({"expires_in": "expires_in_s", "timeout": "timeout_s"})
IN_SECONDS = frozenset({"expires_in_s", "timeout_s"})
_NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,20})?")


def parse(headers: Headers, body: JsonObject) -> tuple[Controls, str | None, JsonObject]:
    """The controls, the Idempotency-Key, and the body without them. A header overrides the body. Raises Invalid."""
    fields, token = _parse_body_field({} if (controls := body.get(BODY_FIELD)) is None else controls)
    rest = {name: value for name, value in body.items() if name != BODY_FIELD} if BODY_FIELD in body else body
    return Controls.model_validate({**fields, **parse_headers(headers)}), headers.get(IDEMPOTENCY_HEADER, token), rest


def parse_headers(headers: Headers) -> JsonObject:
    """The controls in headers. Raises Invalid with the name of the header."""
    fields = {field: _value(headers[header], header, field=field) for header, field in HEADERS.items() if header in headers}
    headers_by_field = {field: header for header, field in HEADERS.items()}
    schemas.validate(Controls, fields, named=lambda path: headers_by_field.get(path, path))
    return fields


def parse_seconds(text: str, *, named: str) -> float:
    """The number of seconds in this text. Raises Invalid."""
    if not _NUMBER.fullmatch(text):
        raise Invalid(f"`{named}` is a number of seconds: 30 or 2.5.", param=named)
    return float(text)


def _parse_body_field(controls: object) -> tuple[JsonObject, str | None]:
    if not isinstance(controls, dict):
        raise Invalid(f'`{BODY_FIELD}` is an object: {{"priority": "high", …}}.', param=BODY_FIELD)
    json_text.check_storable(controls, BODY_FIELD)
    schemas.validate(Inside, controls, named=lambda path: f"{BODY_FIELD}.{path}")
    fields = dict(controls)
    token = fields.pop("idempotency_key", None)
    for short, name in SHORT.items():
        if short in fields:
            if name in fields:
                raise Invalid(
                    f"`{BODY_FIELD}.{short}` and `{BODY_FIELD}.{name}` are the same. Send one of them.", param=f"{BODY_FIELD}.{short}"
                )
            fields[name] = fields.pop(short)
    return fields, token


def _value(text: str, header: str, *, field: str) -> object:
    value = _utf8(text, header)
    return parse_seconds(value, named=header) if field in IN_SECONDS else value


def _utf8(text: str, header: str) -> str:
    # WSGI decodes headers as Latin-1; clients send UTF-8.
    try:
        return text.strip().encode("latin-1").decode()
    except UnicodeError:
        raise Invalid(f"`{header}` is not UTF-8. Send it as UTF-8.", param=header) from None
