"""Settings of the processes and of access: addresses, keys and tokens, metrics, traces, processes and memory.

The docstring under each field is its description in docs/reference/settings.md; the docstring of each class is the section there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BaseModel, Field, SecretStr
from pydantic_settings import NoDecode

from models.config.setting_checks import (
    DatabaseUrl,
    Folder,
    Host,
    HostPatterns,
    Login,
    LogLevel,
    Origins,
    Port,
    Prefix,
    RedisUrl,
    Token,
    WebUrl,
)

OPENAI_API = "https://api.openai.com/v1"


class Addresses(BaseModel):
    """Addresses and stores"""

    host: Host = "127.0.0.1"
    """Address on which the API listens."""
    port: int = Field(8000, ge=0, le=65535)
    """TCP port of the API; `nowserving up` picks a free one for 0."""
    flower_port: int = Field(5555, ge=0, le=65535)
    """TCP port of Flower; `nowserving up` picks a free one for 0."""
    data_dir: Folder = Path(".nowserving")
    """Folder of embedded servers, logs and keys of `nowserving up`, and of answers that a worker spools while PostgreSQL is away."""
    database_url: DatabaseUrl = ""
    """URL of PostgreSQL. Empty: `nowserving up` starts its own server."""
    redis_url: RedisUrl = ""
    """URL of Redis or Valkey, or of its Sentinels. Empty: `nowserving up` starts its own server."""
    database_url_file: Path | None = None
    """File that holds NOWSERVING_DATABASE_URL."""
    redis_url_file: Path | None = None
    """File that holds NOWSERVING_REDIS_URL."""
    public_url: WebUrl = ""
    """URL under which clients reach the API; signed links start with it. Empty: the address of each request."""
    allowed_hosts: Annotated[HostPatterns, NoDecode] = ()
    """Further host names of this server, comma-separated. `.example.com` includes all names below it; `*` allows any."""
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()
    """Networks of proxies whose X-Forwarded-For and X-Forwarded-Proto are used, comma-separated. Proxies on this machine always are."""


class Upstream(BaseModel):
    """Upstream"""

    openai_base_url: str = Field(
        OPENAI_API, validation_alias=AliasChoices("OPENAI_BASE_URL", "NOWSERVING_OPENAI_BASE_URL", "openai_base_url")
    )
    """Base URL of the upstream for own keys and for credentials without a URL."""
    http_proxy: SecretStr = Field(SecretStr(""), validation_alias=AliasChoices("HTTP_PROXY", "http_proxy"))
    """Proxy for upstreams with an http URL. Webhooks never use a proxy."""
    https_proxy: SecretStr = Field(SecretStr(""), validation_alias=AliasChoices("HTTPS_PROXY", "https_proxy"))
    """Proxy for upstreams with an https URL."""
    all_proxy: SecretStr = Field(SecretStr(""), validation_alias=AliasChoices("ALL_PROXY", "all_proxy"))
    """Proxy for upstreams of both schemes, where no other is set."""
    no_proxy: str = Field("", validation_alias=AliasChoices("NO_PROXY", "no_proxy"))
    """Hosts that are reached without a proxy, comma-separated."""
    upstream_proxy: SecretStr | None = None
    """Proxy for all upstreams; it takes precedence over the four settings above. Empty or `none`: no proxy."""
    forward_headers: Annotated[tuple[str, ...], NoDecode] = (
        "OpenAI-Organization", "OpenAI-Project", "OpenAI-Beta", "HTTP-Referer", "X-Title", "Idempotency-Key",
    )  # fmt: skip
    """Request headers of clients with an own key that are sent on to the upstream, comma-separated."""
    forward_headers_issued: Annotated[tuple[str, ...], NoDecode] = ()
    """Request headers of clients with an issued key that are sent on to the upstream, comma-separated."""
    stream_usage: bool = True
    """Whether streamed chat requests ask for usage (`stream_options`). Set false for an upstream that refuses the field."""


class Access(BaseModel):
    """Keys, tokens and access"""

    secret_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """Keys that encrypt what is stored, comma-separated, newest first: each 32 random bytes in base64."""
    open_keys: bool = False
    """Whether clients may send an own upstream key, which is registered on its first use. `nowserving up` sets true."""
    page_key: Token = SecretStr("")
    """Key that the chat page uses for visitors without a key. It never reaches a browser."""
    new_keys_per_ip_per_hour: int = Field(100, ge=0)
    """New own keys that one client address may register per hour; 0: any number."""
    cors_origins: Annotated[Origins, NoDecode] = ("*",)
    """Origins whose pages may call the API from a browser, comma-separated; `*`: any."""
    ops_token: Token = SecretStr("")
    """Bearer token of /ops with all rights. `nowserving operators create` makes further tokens."""
    flower_basic_auth: Login = SecretStr("")
    """`user:password` of Flower."""
    secret_keys_file: Path | None = None
    """File that holds NOWSERVING_SECRET_KEYS."""
    page_key_file: Path | None = None
    """File that holds NOWSERVING_PAGE_KEY."""
    ops_token_file: Path | None = None
    """File that holds NOWSERVING_OPS_TOKEN."""
    flower_basic_auth_file: Path | None = None
    """File that holds NOWSERVING_FLOWER_BASIC_AUTH."""
    flower_url_prefix: Prefix = ""
    """Path of Flower behind a proxy, for example `/flower`."""
    flower_control: bool = False
    """Whether users of Flower may cancel jobs."""


class Telemetry(BaseModel):
    """Metrics, traces and logs"""

    metrics_host: Host = "127.0.0.1"
    """Address on which the pacer and the workers serve /metrics and /healthz."""
    pacer_metrics_port: int = Field(0, ge=0, le=65535)
    """TCP port of the pacer's /metrics and /healthz; 0: not served."""
    worker_metrics_port: int = Field(0, ge=0, le=65535)
    """TCP port of the workers' /metrics and /healthz; 0: not served."""
    metrics_folder: Path | None = Field(None, validation_alias=AliasChoices("PROMETHEUS_MULTIPROC_DIR", "metrics_folder"))
    """Folder in which the processes of one program share their metrics; each program makes its own."""
    otlp_endpoint: WebUrl = Field("", validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp_endpoint"))
    """OTLP endpoint for traces over HTTP. Empty: no traces, and OpenTelemetry is not loaded."""
    otlp_traces_endpoint: WebUrl = Field("", validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "otlp_traces_endpoint"))
    """OTLP endpoint for traces alone; it takes precedence."""
    otel_sdk_disabled: str = Field("", validation_alias=AliasChoices("OTEL_SDK_DISABLED", "otel_sdk_disabled"))
    """`true` turns traces off."""
    otel_traces_exporter: str = Field("", validation_alias=AliasChoices("OTEL_TRACES_EXPORTER", "otel_traces_exporter"))
    """`none` turns traces off."""
    log_level: LogLevel = "INFO"
    """Least severe level that is logged."""


class Processes(BaseModel):
    """Processes, connections and memory"""

    database_pool: int = Field(20, ge=1)
    """Connections to PostgreSQL per process, at most."""
    max_waiting_per_process: int = Field(5_000, ge=1)
    """Clients that wait on an open connection, per API process, at most."""
    waiting_share: float = Field(0.5, gt=0, le=1)
    """Share of those connections that one key may hold while a tenth of them is free."""
    max_streams_per_key: int = Field(1_000, ge=1)
    """Streams among them that one key may hold, however many are free."""
    api_processes: int = Field(1, ge=1)
    """API processes."""
    worker_processes: int = Field(1, ge=1)
    """Worker processes for jobs."""
    worker_threads: int = Field(64, ge=1)
    """Jobs that one worker process runs at once."""
    worker_body_bytes: int = Field(256 * 1024 * 1024, ge=1024)
    """Bytes of large bodies that the calls of one worker process hold at once. The first 256 KiB of each body are not counted."""
    webhook_threads: int = Field(128, ge=0)
    """Webhooks that are sent at once; 0: this worker sends none."""
    batch_scheduling: bool = True
    """Whether processes use SCHED_BATCH on Linux, so that they do not preempt each other when they wake."""
    crash: str = ""
    """For tests: a named point in the code at which the process dies, freezes or raises (models/platform/crash_points.py)."""


class Webhooks(BaseModel):
    """Webhooks"""

    webhook_allow_networks: Annotated[tuple[str, ...], NoDecode] = ()
    """Private networks that webhooks may reach, comma-separated; public addresses are always allowed."""
    webhook_allow_http: bool = False
    """Whether webhooks may use http as well as https."""
    webhook_allow_ports: Annotated[tuple[Port, ...], NoDecode] = ()
    """Ports that webhooks may reach besides 80 and 443, comma-separated."""
    webhook_timeout_s: float = Field(15, gt=0, le=60)
    """Seconds for one delivery attempt."""
    webhook_per_receiver: int = Field(8, ge=1)
    """Deliveries to one receiver at once, at most."""
    webhook_per_host: int = Field(32, ge=1)
    """Deliveries to one host at once, at most."""
