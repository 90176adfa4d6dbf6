"""Settings of jobs: the queue, limits, attempts, requests, money and sessions.

The docstring under each field is its description in docs/reference/settings.md; the docstring of each class is the section there.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field


class Queue(BaseModel):
    """Queue"""

    max_queued_per_lane: int = Field(200_000, ge=1)
    """Jobs that may wait in one lane."""
    max_queued_per_key: int = Field(10_000, ge=1)
    """Jobs of one key that may wait."""
    max_lanes_per_pool: int = Field(1_000, ge=1)
    """Lanes (models) that one pool may have."""
    default_expires_in_s: int = Field(86_400, ge=1)
    """Seconds after which a job that still waits expires, unless its request has another value."""
    default_timeout_s: int = Field(600, ge=1)
    """Seconds for one upstream call, unless the job's request has another value."""
    max_attempts: int = Field(4, ge=1)
    """Failed attempts after which a job fails, unless its request has another value."""
    default_max_output_tokens: int = Field(1_024, ge=1)
    """Tokens that are reserved for a reply when the request has no limit of its own."""
    idempotency_hours: int = Field(24, ge=24)
    """Hours for which an Idempotency-Key is remembered."""
    retention_days: int = Field(30, ge=1)
    """Days for which ended jobs are kept. Usage and the ledger are kept for ever."""


class Limits(BaseModel):
    """Limits of credentials that have none of their own

    0 means unknown: nowserving learns the limit from the upstream's answers."""

    default_rpm: int = Field(0, ge=0)
    """Requests per minute."""
    default_tpm: int = Field(0, ge=0)
    """Tokens per minute."""
    default_ipm: int = Field(0, ge=0)
    """Images per minute."""
    default_rpd: int = Field(0, ge=0)
    """Requests per day."""
    default_max_in_flight: int = Field(0, ge=0)
    """Calls in flight."""


class Attempts(BaseModel):
    """Attempts and retries"""

    lease_s: float = Field(30, gt=0)
    """Seconds after which a running job without a renewed lease counts as lost."""
    heartbeat_s: float = Field(7, gt=0)
    """Seconds between renewals of leases; at most a third of NOWSERVING_LEASE_S."""
    unclaimed_after_s: float = Field(10, gt=0)
    """Seconds after which an admitted job that no worker claimed is requeued."""
    shutdown_grace_s: float = Field(630, ge=0)
    """Seconds for which a worker that is asked to stop waits for its calls."""
    retry_base_s: float = Field(1, gt=0)
    """Seconds before the first retry of a failed attempt; the delay doubles, with jitter."""
    retry_most_s: float = Field(60, gt=0)
    """Longest delay between two attempts, in seconds."""
    pause_s: float = Field(1, gt=0)
    """First pause of a credential and model after a 429 that names no time, in seconds; the pause doubles."""
    pause_most_s: float = Field(300, gt=0)
    """Longest such pause, in seconds."""
    max_throttles: int = Field(12, ge=1)
    """Refusals for load (429, 503) after which a job fails with the upstream's last error."""
    probe_s: float = Field(60, gt=0)
    """Seconds between probes of a parked credential; for one model they back off to an hour."""
    parked_most_s: float = Field(600, ge=0)
    """Seconds after which clients that wait on a connection get an error while every credential of their pool is parked."""
    max_answer_bytes: int = Field(64 * 1024 * 1024, ge=1024)
    """Largest answer of an upstream, in bytes."""


class Requests(BaseModel):
    """Requests and waiting clients"""

    max_body_bytes: int = Field(50 * 1024 * 1024, ge=1024)
    """Largest JSON body, in bytes, unpacked."""
    max_upload_bytes: int = Field(64 * 1024 * 1024, ge=1024)
    """Largest form with files, in bytes."""
    max_intake_bytes: int = Field(256 * 1024 * 1024, ge=1024)
    """Bytes of all bodies that one API process reads at once. The first MiB of each body is not counted."""
    default_image_model: str = ""
    """Model of image requests that name none."""
    long_poll_most_s: float = Field(60, gt=0)
    """Longest `?wait=` of a client, in seconds."""
    status_grace_s: float = Field(30, ge=0)
    """Seconds for which an answer keeps its real status. Later the response begins with 200, then spaces until the answer."""
    keepalive_every_s: float = Field(10, gt=0)
    """Seconds between keep-alive bytes on an open connection."""
    cancel_abandoned: bool = True
    """Whether jobs whose client disconnected are cancelled."""
    abandoned_after_s: float = Field(15, ge=0)
    """Seconds from the disconnect to the cancellation; longer than an SDK's longest back-off of 8 s, because it may reconnect."""
    stream_head_s: float = Field(1, ge=0)
    """Seconds for which a stream's status and headers wait for its first event, so that an early failure has its real status."""
    models_age_s: float = Field(300, ge=1)
    """Age in seconds after which a copy of the upstream's model list is refreshed in the background."""
    artifact_url_s: int = Field(3_600, ge=60)
    """Seconds for which a signed link to an artifact works."""
    pro_model: str = "gpt-3.5-turbo"
    """Model of requests to the legacy /pro API."""
    pro_wait_s: float = Field(12, ge=0, le=60)
    """Seconds for which the legacy /pro API waits for the end of a job before it answers 202."""


class Money(BaseModel):
    """Money"""

    budgets: Literal["issued", "all", "off"] = "issued"
    """Keys that have a budget once they were granted something."""
    default_grant_usd: Decimal = Field(Decimal(0), ge=0, le=1_000_000_000, max_digits=16, decimal_places=6)
    """US dollars that a new key with a budget is granted."""
    prices_file: Path | None = None
    """JSON or TOML file of prices in US dollars: model → input_per_mtok, output_per_mtok, per_image. It overrides genai-prices."""


class Sessions(BaseModel):
    """Sessions and attachments"""

    session_fresh_after_s: float = Field(1_800, ge=0)
    """Seconds of silence after which a conversation starts afresh; 0: never."""
    session_context_tokens: int = Field(8_192, ge=64, le=2**31 - 1)
    """Tokens of earlier turns that a request carries, at most."""
    session_system_prompt: str = ""
    """System prompt of sessions that have none."""
    max_attachment_bytes: int = Field(10 * 1024 * 1024, ge=1024)
    """Largest attachment, in bytes."""
    max_unzipped_bytes: int = Field(512 * 1024 * 1024, ge=1024)
    """Unpacked size up to which an office document is accepted, in bytes. It is never unpacked here."""
