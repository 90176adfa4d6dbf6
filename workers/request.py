"""What goes out for a job: its own bytes, to the address and with the key of the credential that the pacer chose."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from models import credential, endpoint, secret, tokens, turn
from models.settings import settings
from workers.openai_client import Request

JSON = "application/json"
# RFC 3986 lets these stand in a segment as they are; a slash in a model's id does not end one.
SEGMENT_SAFE = "!$&'()*+,;=:@"


def build(row: Any) -> Request:
    """The call for this claimed job."""
    headers = {**(row.headers or {}), "X-Client-Request-Id": str(row.dispatch_id)}
    is_azure = row.credential_kind == credential.AZURE
    is_read = endpoint.method(row.endpoint) == "GET"
    if not is_read:
        headers["Content-Type"] = row.content_type or JSON
    return Request(
        url=_azure_url(row) if is_azure else (row.base_url or settings().openai_base_url).rstrip("/") + _path(row.endpoint),
        key=secret.unseal(row.secret, bound_to=f"credential:{row.credential_id}").decode(),
        headers=headers,
        key_header="api-key" if is_azure else "Authorization",
        content=None if is_read else bytes(row.request),
        # The attempt before may have failed on a kept connection, and others may be as stale, also in other processes.
        fresh=row.failures > 0,
    )


def _azure_url(row: Any) -> str:
    """With a version, the deployment that is called as the model; else Azure's v1 API, which is OpenAI's under another path."""
    base_url = f"{row.base_url}/openai"
    if row.api_version is None:
        return f"{base_url}/v1{_path(row.endpoint)}"
    is_read = endpoint.method(row.endpoint) == "GET"
    deployment = "" if is_read else f"/deployments/{quote(row.model, safe=SEGMENT_SAFE)}"
    return f"{base_url}{deployment}{_path(row.endpoint)}?api-version={row.api_version}"


def asked_tokens(row: Any) -> int:
    """About how many tokens this job's prompt is: of the request that goes out, or what was reserved where that is a form."""
    body = None if row.content_type else turn.parse(row.request)
    return tokens.estimate_request(row.endpoint, body, model=row.model) if body else int(row.tokens)


def _path(name: str) -> str:
    model_id = name.removeprefix(f"{endpoint.MODELS}/")
    if model_id == name:
        return name.removeprefix("/v1")
    return f"/models/{quote(model_id, safe=SEGMENT_SAFE)}"
