"""Decides from an upstream's refusal whether the request, the credential for one model, or the credential itself is at fault.

Sources: OpenAI's error codes; LiteLLM (`budget_exceeded`), OpenRouter (402, "is not a valid model ID"), DeepSeek ("Model Not Exist",
402), Gemini ("API key not valid" as a 400), Anthropic ("credit balance is too low" as a 400).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

# Codes of 429s that do not end by waiting: the account has no money left.
NO_MONEY_CODES = frozenset(
    {"insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded", "project_spend_limit_exceeded",
     "organization_usage_limit_exceeded", "billing_hard_limit_reached"}
)  # fmt: skip
_INVALID_KEY_CODES = frozenset(
    {"invalid_api_key", "account_deactivated", "api_key_invalid", "invalid_authentication", "key_expired", "revoked"}
)
_SCOPE = re.compile(r"missing scopes|insufficient permissions|not have (access|permission)|restricted|scope", re.IGNORECASE)
_INVALID_KEY_TEXT = re.compile(
    r"api.?key (is )?(not valid|invalid|expired)|invalid api.?key|account.{0,40}(deactivated|suspended)", re.IGNORECASE
)
_NO_MODEL = re.compile(
    r"\bmodel\b.{0,120}(not exist|not found|no access)|(no such|unknown|invalid) model\b|not a valid model", re.IGNORECASE | re.DOTALL
)
_NO_MONEY = re.compile(r"budget|credit balance|insufficient (balance|credit|funds|quota)|billing|payment required", re.IGNORECASE)
_CONTENT_POLICY = re.compile(r"moderation|flagged|content.?(policy|filter)|safety|policy.?violation", re.IGNORECASE)


class Fault(StrEnum):
    """The cause of a refusal."""

    REQUEST = "request"  #: Every credential would refuse the request.
    MODEL = "model"  #: This credential cannot serve this endpoint with this model; another credential may.
    KEY = "key"  #: The upstream rejects the credential for all requests.
    MONEY = "money"  #: The credential's account has no money left.


def fault_of(status: int, error: Mapping[str, object]) -> Fault:
    """The cause of a refusal. status: 400 to 429; error: the upstream's error object; code, type and message may be missing."""
    names = {str(error.get(name)).lower() for name in ("code", "type") if isinstance(error.get(name), str)}
    message = str(error.get("message") or "")
    if names & _INVALID_KEY_CODES and status in (400, 401, 403):
        return Fault.KEY
    if status == 429:
        return Fault.MONEY if names & NO_MONEY_CODES else Fault.REQUEST
    if status == 401:
        return Fault.MODEL if _SCOPE.search(message) else Fault.KEY
    if status == 403:
        return _of_403(names, message)
    if status in (402, 404):
        return Fault.MODEL
    if status == 400:
        return _of_400(names, message)
    return Fault.REQUEST


def _of_403(names: set[str], message: str) -> Fault:
    if _INVALID_KEY_TEXT.search(message):
        return Fault.KEY
    is_content = any(_CONTENT_POLICY.search(text) for text in (*names, message))
    return Fault.REQUEST if is_content else Fault.MODEL


def _of_400(names: set[str], message: str) -> Fault:
    if _INVALID_KEY_TEXT.search(message):
        return Fault.KEY
    if "budget_exceeded" in names or "model_not_found" in names or _NO_MONEY.search(message):
        return Fault.MODEL
    return Fault.MODEL if _NO_MODEL.search(message) else Fault.REQUEST
