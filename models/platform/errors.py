"""The error tree. Each class has a stable code; its docstring is the default message, which tells a caller what to do next."""

from __future__ import annotations


class ServingError(Exception):
    """Something went wrong on our side. Try again; if it lasts, give the operator the X-Request-Id."""

    code = "server_error"
    type = "server_error"
    status = 500
    retryable = True

    def __init__(
        self, message: str | None = None, *, param: str | None = None, code: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message or (self.__doc__ or "").strip())
        self.param = param
        self.code = code or self.code
        self.retry_after_s = retry_after_s

    def view(self) -> dict[str, object]:
        """The inner error object of the wire contract: its four keys, always all of them."""
        return {"message": str(self), "type": self.type, "param": self.param, "code": self.code}


class Invalid(ServingError):
    """The request cannot be understood. Correct it and send it again."""

    code = "invalid_request"
    type = "invalid_request_error"
    status = 400
    retryable = False


class Unauthorised(Invalid):
    """No valid key was sent. Send it as `Authorization: Bearer <key>`."""

    code = "invalid_api_key"
    status = 401


class Forbidden(Invalid):
    """This token may look and not touch. Use one with the role `write`."""

    code = "forbidden"
    status = 403


class HostNotAllowed(Invalid):
    """The Host header of this request is no name of this server. The operator adds names with NOWSERVING_ALLOWED_HOSTS."""

    code = "host_not_allowed"
    status = 421


class OriginNotAllowed(Invalid):
    """Pages of this origin may not call this server. The operator allows origins with NOWSERVING_CORS_ORIGINS=https://chat.example.com."""

    code = "origin_not_allowed"
    status = 403


class NotFound(Invalid):
    """There is no such thing here. Check the id, and that the key is the one that made it."""

    code = "not_found"
    status = 404


class Conflict(ServingError):
    """Another request with this Idempotency-Key is being stored right now. Try again in a second."""

    code = "conflict"
    type = "invalid_request_error"
    status = 409


class WrongState(Conflict):
    """The job's state does not allow this."""

    code = "wrong_state"
    retryable = False


class TooLarge(Invalid):
    """The body is larger than this server accepts. Send less, or ask the operator to raise NOWSERVING_MAX_BODY_BYTES."""

    code = "request_too_large"
    status = 413


class UnsupportedMedia(Invalid):
    """Send the body as UTF-8 JSON with `Content-Type: application/json`."""

    code = "unsupported_media_type"
    status = 415


class IdempotencyMismatch(Invalid):
    """This Idempotency-Key was used with another body. Use a new key for a new request."""

    code = "idempotency_mismatch"
    status = 422


class QueueFull(ServingError):
    """The line is full. Come back later."""

    code = "line_full"
    type = "rate_limit_error"
    status = 429
    retryable = False


class TooLate(QueueFull):
    """The line is longer than this job may wait. Allow more time with expires_in_s, or come back later."""

    code = "wait_exceeds_deadline"


class TooManyModels(QueueFull):
    """This pool has jobs for the largest number of models that it may have. Ask for one of those models, or try again later."""

    code = "too_many_models"


class Draining(QueueFull):
    """This line takes nothing new just now: its operator lets it run empty. Come back later."""

    code = "draining"


class TooManyWaiting(ServingError):
    """Too many connections of this key wait. Let fewer wait, or send `Prefer: respond-async` and look with GET /v1/jobs/{id}."""

    code = "too_many_waiting"
    type = "rate_limit_error"
    status = 429


class TooManyWrongTokens(ServingError):
    """Too many wrong keys, tokens or passwords came from this address. Wait a minute, then send the right one."""

    code = "too_many_wrong_tokens"
    type = "rate_limit_error"
    status = 429
    retryable = False


class BudgetExhausted(ServingError):
    """This key has no money left. Ask the operator for a grant."""

    code = "credit_balance_exhausted"
    type = "insufficient_quota"
    status = 429
    retryable = False


class Unavailable(ServingError):
    """The store cannot be reached right now and nothing was accepted. Try again in a few seconds."""

    code = "unavailable"
    status = 503


class LimiterUnavailable(ServingError):
    """The limiter cannot be reached: jobs stay queued, nothing goes out unthrottled."""

    code = "line_unavailable"
    status = 503
