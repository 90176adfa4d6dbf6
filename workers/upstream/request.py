"""Builds the upstream request of a job: the job's bytes, with the address and key of the credential that the pacer chose."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import msgspec

from models.config.settings import settings
from models.content import endpoints, token_estimate
from models.database import db
from models.jobs import claims
from models.keys import credential_address
from models.platform import crypto, json_reading
from models.platform.errors import Unavailable
from workers.upstream.answer_body import JsonObject
from workers.upstream.exchange import Body, Request

JSON = "application/json"
# Longer members of a large request are prompts. The shorter ones are options for the answer and its storage.
OUTLINE_BYTES = 64 * 1024
# RFC 3986 allows these in a path segment unescaped. A slash in a model's id is escaped.
SEGMENT_SAFE = "!$&'()*+,;=:@"


def read_request(row: Any) -> bytes:
    """The request of a claimed row that was read without it. Raises Unavailable, also when it was erased meanwhile."""
    with db.autocommit() as session:
        content = claims.read_request(session, row.id, size=row.request_bytes)
    if len(content) != row.request_bytes:
        raise Unavailable
    return content


def outline(content: bytes) -> bytes:
    """The JSON object without its long members: the options that the rest of the call needs after a large request was freed."""
    members = _members(content)
    return (
        b"{}"
        if members is None
        else msgspec.json.encode({name: raw for name, raw in members.items() if memoryview(raw).nbytes <= OUTLINE_BYTES})
    )


def with_member(content: bytes, name: str, value: JsonObject) -> bytes:
    """The JSON object with this member; all others stay unchanged, byte for byte. Raises ValueError for anything but an object."""
    members = _members(content)
    if members is None:
        return json.dumps({**json.loads(content), name: value}, separators=(",", ":")).encode()
    return msgspec.json.encode({**members, name: msgspec.Raw(msgspec.json.encode(value))})


def _members(content: bytes) -> dict[str, msgspec.Raw] | None:
    """The members of the JSON object as raw JSON, without copies. None where msgspec rejects it."""
    try:
        return _MEMBERS.decode(content)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


_MEMBERS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def build(row: Any, content: bytes | Body) -> Request:
    """The request of this claimed job. content: of workers/runner/outgoing.py."""
    headers = {**(row.headers or {}), "X-Client-Request-Id": str(row.dispatch_id)}
    is_azure = row.credential_kind == credential_address.AZURE
    is_read = endpoints.http_method(row.endpoint) == "GET"
    if not is_read:
        headers["Content-Type"] = row.content_type or JSON
    return Request(
        url=_azure_url(row) if is_azure else (row.base_url or settings().openai_base_url).rstrip("/") + _path(row.endpoint),
        key=crypto.unseal(row.secret, bound_to=f"credential:{row.credential_id}").decode(),
        headers=headers,
        key_header="api-key" if is_azure else "Authorization",
        content=None if is_read else content,
        # The last attempt may have failed on a kept connection; others may be as stale, in other processes too.
        fresh=row.failures > 0,
    )


def _azure_url(row: Any) -> str:
    """The URL at Azure: with an API version, the deployment named like the model; else the v1 API, which is OpenAI's at another path."""
    base_url = f"{row.base_url}/openai"
    if row.api_version is None:
        return f"{base_url}/v1{_path(row.endpoint)}"
    is_read = endpoints.http_method(row.endpoint) == "GET"
    deployment = "" if is_read else f"/deployments/{quote(row.model, safe=SEGMENT_SAFE)}"
    return f"{base_url}{deployment}{_path(row.endpoint)}?api-version={row.api_version}"


def asked_tokens(row: Any, content: bytes | Body) -> int:
    """The estimated tokens of the prompt, counted in the request that is sent; the reserved tokens where that is unknown.

    content: as for `build`. A large one was freed when it was written, so it is read again. Forms and large histories are unknown.
    """
    if row.content_type:
        return int(row.tokens)
    if isinstance(content, Body):
        try:
            content = read_request(row) if content.is_stored else b""
        except Unavailable:
            content = b""
    body = json_reading.json_object(content)
    return token_estimate.estimate_request(row.endpoint, body, model=row.model) if body else int(row.tokens)


def _path(name: str) -> str:
    model_id = name.removeprefix(f"{endpoints.MODELS}/")
    if model_id == name:
        return name.removeprefix("/v1")
    return f"/models/{quote(model_id, safe=SEGMENT_SAFE)}"
