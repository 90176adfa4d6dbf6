"""The response bodies as pydantic models, from which /openapi.json and the docs page are generated."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Shown = Literal["queued", "running", "succeeded", "failed", "cancelled", "expired"]
SHOWN: tuple[Shown, ...] = ("queued", "running", "succeeded", "failed", "cancelled", "expired")


class Answer(BaseModel):
    """A response object. All of its fields are always present."""

    model_config = ConfigDict(extra="forbid")


class ErrorInside(Answer):
    """The error and its cure."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Answer):
    """The body of every error response."""

    error: ErrorInside


class Queue(Answer):
    """The position of a waiting job in its queue."""

    position: int = Field(description="1 is next, 0: on its way to a worker. Exact up to 10,000.")
    eta_s: float | None = Field(description="Estimated seconds until the call; null: unknown.")
    blocked_by: str | None = Field(
        description="What it waits for: a limit, a cap as `key_rpm`, `paused`, `backoff`, `conversation`; null: nothing."
    )
    wake_at: float | None = Field(description="When the queue moves again, in Unix seconds.")


class Attempt(Answer):
    """One call of the upstream."""

    n: int
    outcome: Literal["running", "succeeded", "refused", "throttled", "failed", "unknown", "cancelled", "not_sent"]
    http_status: int | None
    started_at: float | None
    ended_at: float | None
    upstream_request_id: str | None


class Usage(Answer):
    """The usage of all attempts together."""

    input_tokens: int
    output_tokens: int
    images: int
    estimated: bool = Field(description="true: this server estimated a part of it, because the upstream did not report it.")


class Artifact(Answer):
    """An image that the job produced."""

    id: str
    content_type: str
    bytes: int
    url: str = Field(description="Opens without a key until it expires; fetch the job again for a fresh one.")


class Raw(Answer):
    """The bytes of an upstream response that is no result."""

    url: str = Field(description="GET it with the same key.")
    content_type: str = Field(description="The Content-Type of the upstream.")
    bytes: int


class Job(Answer):
    """One queued OpenAI request."""

    id: str = Field(pattern="^job_[0-9a-f]{32}$")
    object: Literal["job"]
    endpoint: str
    model: str
    status: Shown
    queue: Queue | None = Field(description="null once it runs or has ended.")
    user: str
    priority: Literal["low", "normal", "high"]
    conversation: str | None
    created_at: float
    expires_at: float | None
    started_at: float | None
    ended_at: float | None
    timeout_s: float
    cancel_requested: bool
    possible_duplicate_calls: int
    attempt_count: int
    attempts: list[Attempt] = Field(description="The first ten and the last ten.")
    http_status: int | None = Field(
        description="The last status of the upstream; for an error inside a 200 response, the status that it stands for."
    )
    usage: Usage | None
    cost_usd: float | None = Field(description="null: no price is known for the model.")
    result: Any = Field(
        description="The body of the upstream, unchanged except for requested links. null in lists and in all events but the last."
    )
    result_raw: Raw | None = Field(
        description="The response to a failed call, if it is not JSON or not the expected object; null for most jobs."
    )
    artifacts: list[Artifact]
    error: dict[str, Any] | None
    metadata: dict[str, str]
    retry_of: str | None


class JobList(Answer):
    """One page of jobs, newest first."""

    object: Literal["list"]
    data: list[Job]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Event(Answer):
    """The `data` of one server-sent event of a job; its `id` is the seq."""

    type: str = Field(description="job.queued, .started, .cancelling, .succeeded, .failed, .cancelled or .expired")
    seq: int
    at: float
    detail: dict[str, Any] | None
    job: Job


class QueueEvent(Answer):
    """The `data` of a `queue` event: the job has moved up in the queue. It has no id."""

    type: Literal["queue"]
    job_id: str
    queue: Queue


class Pro(BaseModel):
    """Every answer of the legacy API, over HTTP 200. `data` is left out of errors."""

    code: int = Field(description="200, 202 (fetch it by `jobId`), 400, 401, 402, 429, 500, 502 or 504.")
    message: str
    data: Any = None
    timestamp: int | None = Field(None, description="Unix milliseconds.")
    jobId: str | None = None


class Health(Answer):
    """Whether this process can serve; `gone` lists the failed checks."""

    status: Literal["ok", "unavailable"]
    gone: list[str]
