"""Request headers that are forwarded to the upstream with the job. The operator allows them for each kind of key."""

from __future__ import annotations

from flask import Request

from models.config.settings import settings
from models.keys.keys import Key
from models.platform.errors import Invalid

MAX_VALUE_CHARS = 1024
MAX_TOTAL_CHARS = 4096


def select_headers(request: Request, caller: Key) -> dict[str, str] | None:
    """The forwarded headers, with names in lower case; None without any. Raises Invalid for a long or unprintable value."""
    allowed = settings().forward_headers if caller.kind == "own" else settings().forward_headers_issued
    forwarded = {name.lower(): value for name in allowed if (value := request.headers.get(name))}
    for name, value in forwarded.items():
        if len(value) > MAX_VALUE_CHARS or not value.isascii() or not value.isprintable():
            name = next(allowed_name for allowed_name in allowed if allowed_name.lower() == name)
            raise Invalid(f"The header {name} is sent on: at most {MAX_VALUE_CHARS} printable ASCII characters.", param=name)
    if sum(map(len, (*forwarded, *forwarded.values()))) > MAX_TOTAL_CHARS:
        raise Invalid(f"The headers that are sent on ({', '.join(forwarded)}) are longer than {MAX_TOTAL_CHARS} characters. Send fewer.")
    return forwarded or None


def fingerprint(forwarded: dict[str, str] | None) -> bytes:
    """The part of a request fingerprint that stands for the forwarded headers, without the Idempotency-Key."""
    lines = (f"{name}: {value}\n" for name, value in sorted((forwarded or {}).items()) if name != "idempotency-key")
    return "".join(lines).encode()
