"""The headers of a request that go on to the upstream with its job, as the operator allows for the kind of key."""

from __future__ import annotations

from flask import Request

from models.config.settings import settings
from models.keys.keys import Key
from models.platform.errors import Invalid

VALUE_MOST_CHARS = 1024
ALL_MOST_CHARS = 4096


def select_headers(request: Request, caller: Key) -> dict[str, str] | None:
    """Names in lower case; None when there are none. Raises Invalid for a value that is too long or not printable ASCII."""
    allowed = settings().forward_headers if caller.kind == "own" else settings().forward_headers_issued
    found = {name.lower(): value for name in allowed if (value := request.headers.get(name))}
    for name, value in found.items():
        if len(value) > VALUE_MOST_CHARS or not value.isascii() or not value.isprintable():
            name = next(each for each in allowed if each.lower() == name)
            raise Invalid(f"The header {name} is sent on: at most {VALUE_MOST_CHARS} printable ASCII characters.", param=name)
    if sum(map(len, (*found, *found.values()))) > ALL_MOST_CHARS:
        raise Invalid(f"The headers that are sent on ({', '.join(found)}) are longer than {ALL_MOST_CHARS} characters. Send fewer.")
    return found or None


def fingerprint(found: dict[str, str] | None) -> bytes:
    """What tells apart two requests of the same body. An Idempotency-Key does that by itself."""
    lines = (f"{name}: {value}\n" for name, value in sorted((found or {}).items()) if name != "idempotency-key")
    return "".join(lines).encode()
