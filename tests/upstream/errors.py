"""OpenAI's error responses."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace

from tests.upstream.answer import Answer, encode, error
from tests.upstream.behaviour import Behaviour
from tests.upstream.limits import NAMES, Refusal, duration

MORE = "Visit https://platform.openai.com/account/rate-limits to learn more."
QUOTA = "You exceeded your current quota, please check your plan and billing details."

BY_STATUS: dict[int, tuple[str, str | None, str]] = {
    400: ("invalid_request_error", None, "Invalid request."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided: sk-fake."),
    403: ("invalid_request_error", "unsupported_country_region_territory", "Country, region, or territory not supported."),
    404: ("invalid_request_error", "model_not_found", "The model does not exist or you do not have access to it."),
    408: ("invalid_request_error", "request_timeout", "The request took too long to arrive."),
    409: ("invalid_request_error", "conflict", "The resource was changed by another request."),
    413: ("invalid_request_error", "request_too_large", "The request body is too large."),
    422: ("invalid_request_error", None, "The request could not be processed."),
    429: ("requests", "rate_limit_exceeded", f"Rate limit reached for requests. {MORE}"),
    500: ("server_error", None, "The server had an error while processing your request. Sorry about that!"),
    503: ("server_error", "server_is_overloaded", "That model is currently overloaded with other requests."),
}
BY_KIND = {
    "quota": ("insufficient_quota", "credit_balance_exhausted", QUOTA),
    "quota_legacy": ("insufficient_quota", "insufficient_quota", QUOTA),
    "slow_down": ("requests", "slow_down", "Your requests grew too fast. Slow down to your earlier rate and raise it slowly."),
}
FAKE_429_RETRY_AFTER_S = 1.0


def refused(refusal: Refusal, model: str) -> Answer:
    """429 for a limit that was exceeded."""
    kind = "tokens" if refusal.name == "tpm" else "requests"
    where = f"for {model} in organization org-fake on {NAMES[refusal.name]}: Limit {refusal.limit}"
    if refusal.retry_after_s is None:
        hint = "The input or output tokens must be reduced in order to run successfully."
        message = f"Request too large {where}, Requested {refusal.requested}. {hint} {MORE}"
        return error(429, message, type=kind, code="rate_limit_exceeded")
    again = f"Please try again in {duration(refusal.retry_after_s)}."
    message = f"Rate limit reached {where}, Used {refusal.used}, Requested {refusal.requested}. {again} {MORE}"
    return error(429, message, type=kind, code="rate_limit_exceeded", headers=retry_after(refusal.retry_after_s))


def faked(how: Behaviour) -> Answer:
    """The error that a behaviour sets, for any call."""
    status = how.status or 500
    if how.kind == "html" or (how.kind is None and status in (502, 504)):
        page = f"<html><head><title>{status}</title></head><body><center><h1>{status}</h1></center><hr>cloudflare</body></html>"
        return Answer(status, page.encode(), content_type="text/html", headers=retry_after(how.retry_after))
    default = (how.kind and BY_KIND.get(how.kind)) or BY_STATUS.get(status) or BY_STATUS[500 if status >= 500 else 400]
    kind, code, message = default
    wait_s = how.retry_after
    if wait_s is None and status == 429 and how.kind in (None, "rate", "slow_down"):
        wait_s = FAKE_429_RETRY_AFTER_S
    return error(status, message, type=kind, code=how.code or code, headers=retry_after(wait_s))


WORDS = "größe: the model is not here"
# WORDS in the error formats of other servers: FastAPI, vLLM, RFC 9457, Gemini, and proxies.
SHAPED: dict[str, object] = {
    "detail": {"detail": WORDS},
    "detail_list": {"detail": [{"loc": ["body", "model"], "msg": WORDS, "type": "value_error"}]},
    "flat": {"object": "error", "message": WORDS, "type": "BadRequestError", "param": None, "code": 40303},
    "message": {"message": WORDS},
    "string": {"error": WORDS},
    "errors": {"errors": [{"message": WORDS}]},
    "problem": {"type": "about:blank", "title": "Bad", "detail": WORDS, "status": 400},
    "list": [{"error": {"code": 400, "message": WORDS, "status": "INVALID_ARGUMENT"}}],
}


def shaped(how: Behaviour, good: Answer) -> Answer:
    """The error that a behaviour sets, in another format than OpenAI's, or OpenAI's error with status 200.

    good: the answer without the behaviour.
    """
    usual, shape = faked(how), how.shape or ""
    if shape == "in_200_null":
        return replace(good, body=good.body.replace(b"{", b'{"error":null,', 1))
    if shape.startswith("in_200"):
        return replace(usual, status=200, body=b"[" + usual.body + b"]" if shape == "in_200_list" else usual.body)
    if shape in SHAPED:
        return replace(usual, body=json.dumps(SHAPED[shape], ensure_ascii=False).encode(), content_type="application/json")
    page = f"<html><head><title>Oops</title><style>p {{}}</style></head><body><p>{WORDS}</p></body></html>"
    if shape == "html":
        return replace(usual, body=page.encode(), content_type="text/html; charset=utf-8")
    if shape == "gzip":
        body = gzip.compress(encode({"error": {"message": WORDS}}))
        return replace(usual, body=body, headers=f"{usual.headers}content-encoding: gzip\r\n")
    if shape == "latin1":
        return replace(usual, body=WORDS.encode("latin-1"), content_type="text/plain; charset=iso-8859-1")
    return replace(usual, body=b"" if shape == "empty" else WORDS.encode(), content_type="text/plain; charset=utf-8")


def retry_after(wait_s: float | None) -> str:
    if wait_s is None:
        return ""
    return f"retry-after: {max(1, math.ceil(wait_s))}\r\nretry-after-ms: {max(1, math.ceil(wait_s * 1000))}\r\n"
