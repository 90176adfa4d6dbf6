"""Classification of refusals, with errors of real upstreams: the request, the credential for one model, or the credential is at fault."""

from __future__ import annotations

import pytest

from workers.answers import blame
from workers.answers.blame import Fault

CASES = [
    (401, {"code": "invalid_api_key", "message": "Incorrect API key provided."}, Fault.KEY),
    (401, {"message": "Unauthorized"}, Fault.KEY),
    (401, {"message": "You have insufficient permissions for this operation. Missing scopes: model.request."}, Fault.MODEL),
    (400, {"message": "API key not valid. Please pass a valid API key.", "code": 400}, Fault.KEY),
    (403, {"message": "Your account has been deactivated."}, Fault.KEY),
    (403, {"code": "unsupported_country_region_territory", "message": "Country not supported"}, Fault.MODEL),
    (403, {"message": "Project `p` does not have access to model `gpt-x`", "code": "model_not_found"}, Fault.MODEL),
    (403, {"code": "insufficient_user_quota", "message": "user quota is not enough"}, Fault.MODEL),
    (403, {"message": "Your chosen model requires moderation and your input was flagged"}, Fault.REQUEST),
    (402, {"message": "Insufficient Balance"}, Fault.MODEL),
    (404, {"code": "model_not_found", "message": "The model `x` does not exist"}, Fault.MODEL),
    (404, {"message": None}, Fault.MODEL),
    (400, {"type": "budget_exceeded", "message": "Budget has been exceeded! Current cost: 1.2, Max budget: 1.0"}, Fault.MODEL),
    (400, {"message": "x-large is not a valid model ID"}, Fault.MODEL),
    (400, {"message": "Model Not Exist"}, Fault.MODEL),
    (400, {"message": "Invalid model: mistral-x"}, Fault.MODEL),
    (400, {"message": "Your credit balance is too low to access the Anthropic API."}, Fault.MODEL),
    (400, {"message": "Unknown parameter: 'model_kwargs'.", "code": "unknown_parameter"}, Fault.REQUEST),
    (400, {"message": "This model's maximum context length is 8192 tokens.", "code": "context_length_exceeded"}, Fault.REQUEST),
    (400, {"message": "Unsupported parameter: 'max_tokens' is not supported with this model."}, Fault.REQUEST),
    (422, {"message": "no such model"}, Fault.REQUEST),
    (429, {"code": "insufficient_quota"}, Fault.MONEY),
    (429, {"code": "rate_limit_exceeded", "message": "Your billing plan allows 3 requests a minute."}, Fault.REQUEST),
]


@pytest.mark.parametrize(("status", "error", "fault"), CASES, ids=lambda value: str(value)[:40])
def test_refusal_is_blamed_on_request_model_or_credential(status: int, error: dict[str, object], fault: Fault) -> None:
    assert fault == blame.fault_of(status, error)
