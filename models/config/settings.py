"""Every number a stranger might change, read once from the environment (prefix NOWSERVING_)."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from decimal import Decimal
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.config import forwarded_headers, price_file, secret_files, upstream_url
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
KEY_BYTES = 32
OPS_TOKEN_MIN_CHARS = 24


class Settings(BaseSettings):
    """Frozen for the life of the process. Units are in the names."""

    model_config = SettingsConfigDict(
        env_prefix="NOWSERVING_", frozen=True, populate_by_name=True, extra="ignore", hide_input_in_errors=True, allow_inf_nan=False
    )

    # Addresses. Empty URLs mean: `nowserving up` brings its own servers. Both may hold a password: see secret_files.
    host: Host = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    flower_port: int = Field(5555, ge=0, le=65535)
    data_dir: Folder = Path(".nowserving")
    database_url: DatabaseUrl = ""
    redis_url: RedisUrl = ""
    database_url_file: Path | None = None
    redis_url_file: Path | None = None
    public_url: WebUrl = ""
    # Further names of this server in a URL, comma-separated: .example.com with all below it, * any (models/access/host_names.py).
    allowed_hosts: Annotated[HostPatterns, NoDecode] = ()
    # Proxies whose X-Forwarded-For and X-Forwarded-Proto are believed, comma-separated; those on this machine always are.
    trusted_proxies: Annotated[tuple[str, ...], NoDecode] = ()

    # Upstream
    openai_base_url: str = Field(
        OPENAI_API, validation_alias=AliasChoices("OPENAI_BASE_URL", "NOWSERVING_OPENAI_BASE_URL", "openai_base_url")
    )

    # Proxies on the way to the upstream, as other programs read them; webhooks never take one. Ours beats them: empty or `none` is direct.
    http_proxy: SecretStr = Field(SecretStr(""), validation_alias=AliasChoices("HTTP_PROXY", "http_proxy"))
    https_proxy: SecretStr = Field(SecretStr(""), validation_alias=AliasChoices("HTTPS_PROXY", "https_proxy"))
    all_proxy: SecretStr = Field(SecretStr(""), validation_alias=AliasChoices("ALL_PROXY", "all_proxy"))
    no_proxy: str = Field("", validation_alias=AliasChoices("NO_PROXY", "no_proxy"))
    upstream_proxy: SecretStr | None = None

    # Headers of callers that go on to the upstream, for own keys and for issued ones (models/config/forwarded_headers.py)
    forward_headers: Annotated[tuple[str, ...], NoDecode] = (
        "OpenAI-Organization", "OpenAI-Project", "OpenAI-Beta", "HTTP-Referer", "X-Title", "Idempotency-Key",
    )  # fmt: skip
    forward_headers_issued: Annotated[tuple[str, ...], NoDecode] = ()

    # Chat streams are asked for what they used; false for an upstream that refuses stream_options
    stream_usage: bool = True

    # Who may come in
    secret_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    open_keys: bool = False
    # What the chat page uses for visitors without a key; it never reaches their browsers.
    page_key: Token = SecretStr("")
    new_keys_per_ip_per_hour: int = Field(100, ge=0)  # 0: any number
    # Pages of these origins may call from a browser; a star: any.
    cors_origins: Annotated[Origins, NoDecode] = ("*",)
    # A bearer token of /ops that may do everything; others are made with `nowserving operators create`.
    ops_token: Token = SecretStr("")
    flower_basic_auth: Login = SecretStr("")
    # The same from files, as Docker and Kubernetes mount them
    secret_keys_file: Path | None = None
    page_key_file: Path | None = None
    ops_token_file: Path | None = None
    flower_basic_auth_file: Path | None = None
    # Behind a proxy under a path (/flower); and whether Flower's users may cancel jobs.
    flower_url_prefix: Prefix = ""
    flower_control: bool = False

    # /metrics and /healthz of the pacer and the workers, which serve no other HTTP (port 0: not served)
    metrics_host: Host = "127.0.0.1"
    pacer_metrics_port: int = Field(0, ge=0, le=65535)
    worker_metrics_port: int = Field(0, ge=0, le=65535)
    # Where the processes of one program count together; made by the program itself
    metrics_folder: Path | None = Field(None, validation_alias=AliasChoices("PROMETHEUS_MULTIPROC_DIR", "metrics_folder"))

    # Traces: OpenTelemetry's own variables. With an address, spans go there as OTLP over HTTP; without, nothing of it is loaded.
    otlp_endpoint: WebUrl = Field("", validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp_endpoint"))
    otlp_traces_endpoint: WebUrl = Field("", validation_alias=AliasChoices("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "otlp_traces_endpoint"))
    otel_sdk_disabled: str = Field("", validation_alias=AliasChoices("OTEL_SDK_DISABLED", "otel_sdk_disabled"))
    otel_traces_exporter: str = Field("", validation_alias=AliasChoices("OTEL_TRACES_EXPORTER", "otel_traces_exporter"))

    # The line
    max_queued_per_lane: int = Field(200_000, ge=1)
    max_queued_per_key: int = Field(10_000, ge=1)
    max_lanes_per_pool: int = Field(1_000, ge=1)
    default_expires_in_s: int = Field(86_400, ge=1)
    default_timeout_s: int = Field(600, ge=1)
    max_attempts: int = Field(4, ge=1)
    default_max_output_tokens: int = Field(1_024, ge=1)
    idempotency_hours: int = Field(24, ge=24)
    retention_days: int = Field(30, ge=1)

    # Limits of a credential that its operator left open (0: none known, learn them)
    default_rpm: int = Field(0, ge=0)
    default_tpm: int = Field(0, ge=0)
    default_ipm: int = Field(0, ge=0)
    default_rpd: int = Field(0, ge=0)
    default_max_in_flight: int = Field(0, ge=0)

    # Life of an attempt
    lease_s: float = Field(30, gt=0)
    heartbeat_s: float = Field(7, gt=0)
    unclaimed_after_s: float = Field(10, gt=0)
    shutdown_grace_s: float = Field(630, ge=0)
    retry_base_s: float = Field(1, gt=0)
    retry_most_s: float = Field(60, gt=0)
    # After a refusal for load that names no time: the first pause of a credential and model, and the longest. It doubles in between.
    pause_s: float = Field(1, gt=0)
    pause_most_s: float = Field(300, gt=0)
    # A job that is refused for load so often fails with the upstream's last words.
    max_throttles: int = Field(12, ge=1)
    probe_s: float = Field(60, gt=0)
    # Callers that wait on a connection fail when every credential of their pool has been parked for so long.
    parked_most_s: float = Field(600, ge=0)
    max_answer_bytes: int = Field(64 * 1024 * 1024, ge=1024)

    # What a request may be
    max_body_bytes: int = Field(50 * 1024 * 1024, ge=1024)
    max_upload_bytes: int = Field(64 * 1024 * 1024, ge=1024)
    # Of all bodies that one API process is taking in; the first MiB of each does not count.
    max_intake_bytes: int = Field(256 * 1024 * 1024, ge=1024)
    default_image_model: str = ""
    long_poll_most_s: float = Field(60, gt=0)
    # An open connection's answer keeps its real status when it is known within this time; then 200 is said, and spaces until it comes.
    status_grace_s: float = Field(30, ge=0)
    keepalive_every_s: float = Field(10, gt=0)
    # Jobs whose caller went away are cancelled after this time: longer than an SDK's longest back-off of 8 s, for it may come back.
    cancel_abandoned: bool = True
    abandoned_after_s: float = Field(15, ge=0)
    # A stream's status and headers wait so long for its first event, so that a failure at once has its real status.
    stream_head_s: float = Field(1, ge=0)
    # Copies of the upstream's list of models older than this are refreshed, in the background.
    models_age_s: float = Field(300, ge=1)
    artifact_url_s: int = Field(3_600, ge=60)

    # Money: whose keys have a budget once they were granted something (issued, all, off), and what such a key is granted when it is new
    budgets: Literal["issued", "all", "off"] = "issued"
    default_grant_usd: Decimal = Field(Decimal(0), ge=0, le=1_000_000_000, max_digits=16, decimal_places=6)
    # JSON or TOML, model: {input_per_mtok, output_per_mtok, per_image} in US dollars; beats the list that ships with genai-prices.
    prices_file: Path | None = None

    # Sessions: what a turn remembers, and files attached to them. A silence of fresh_after_s begins afresh (0: never).
    session_fresh_after_s: float = Field(1_800, ge=0)
    session_context_tokens: int = Field(8_192, ge=64, le=2**31 - 1)
    session_system_prompt: str = ""
    max_attachment_bytes: int = Field(10 * 1024 * 1024, ge=1024)
    max_unzipped_bytes: int = Field(512 * 1024 * 1024, ge=1024)

    # Webhooks: what they may reach besides https on ports 80 and 443 of the public network, and how long one may take
    webhook_allow_networks: Annotated[tuple[str, ...], NoDecode] = ()
    webhook_allow_http: bool = False
    webhook_allow_ports: Annotated[tuple[Port, ...], NoDecode] = ()
    webhook_timeout_s: float = Field(15, gt=0, le=60)
    webhook_per_receiver: int = Field(8, ge=1)
    webhook_per_host: int = Field(32, ge=1)

    # The legacy /pro API: what it asks, and how long its callers are kept waiting before they are told to come back
    pro_model: str = "gpt-3.5-turbo"
    pro_wait_s: float = Field(12, ge=0, le=60)

    # Processes
    database_pool: int = Field(20, ge=1)
    # Connections that wait in one API process, and what one key may hold of them while a tenth is free (api/waiting/waiter.py)
    max_waiting_per_process: int = Field(5_000, ge=1)
    waiting_share: float = Field(0.5, gt=0, le=1)
    # Streams among them that one key may have open, however many are free
    max_streams_per_key: int = Field(1_000, ge=1)
    api_processes: int = Field(1, ge=1)
    worker_processes: int = Field(1, ge=1)
    worker_threads: int = Field(64, ge=1)
    # Of the large bodies that the calls of one worker process hold; the first 256 KiB of each does not count
    # (workers/upstream/body_budget.py).
    worker_body_bytes: int = Field(256 * 1024 * 1024, ge=1024)
    webhook_threads: int = Field(128, ge=0)
    # Parts and embedded servers take no core from each other when they wake (models/platform/cpu_scheduling.py)
    batch_scheduling: bool = True
    log_level: LogLevel = "INFO"

    # A test's lever: a named place in the code where the process dies, freezes or raises (models/platform/crash_points.py).
    crash: str = ""

    @model_validator(mode="before")
    @classmethod
    def _from_files(cls, given: dict[str, Any]) -> dict[str, Any]:
        return secret_files.read(given)

    @field_validator(
        "secret_keys", "allowed_hosts", "cors_origins", "webhook_allow_networks", "webhook_allow_ports", "trusted_proxies",
        "forward_headers", "forward_headers_issued", mode="before",
    )  # fmt: skip
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("webhook_allow_networks", "trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ip_network(each)) for each in value)

    @field_validator("openai_base_url")
    @classmethod
    def _address(cls, value: str) -> str:
        return upstream_url.base_url(value, setting="OPENAI_BASE_URL") if value.strip() else OPENAI_API

    @field_validator("forward_headers", "forward_headers_issued")
    @classmethod
    def _forwardable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(forwarded_headers.check_name, value))

    @field_validator("prices_file", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        return value or None

    @field_validator("prices_file")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        if value is not None:
            price_file.read(value)
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for secret in self.secret_keys:
            if len(_decode(secret.get_secret_value())) != KEY_BYTES:
                raise ValueError("each of NOWSERVING_SECRET_KEYS must be 32 random bytes in base64: openssl rand -base64 32")
        if 0 < len(self.ops_token.get_secret_value()) < OPS_TOKEN_MIN_CHARS:
            raise ValueError(
                f"NOWSERVING_OPS_TOKEN must have at least {OPS_TOKEN_MIN_CHARS} characters, for it may do everything: "
                "openssl rand -hex 24 makes one"
            )
        if self.heartbeat_s * 3 > self.lease_s:
            raise ValueError("NOWSERVING_HEARTBEAT_S must be at most a third of NOWSERVING_LEASE_S")
        for scheme in ("http", "https"):
            self.proxy(scheme)
        return self

    def proxy(self, scheme: str) -> str | None:
        """The address of the proxy for upstreams of this scheme, with user and password if it has them; None: direct.

        Raises ValueError for an address that is none.
        """
        if self.upstream_proxy is not None:
            ours = self.upstream_proxy.get_secret_value().strip()
            direct = ours.lower() in ("", "none", "direct")
            return None if direct else upstream_url.proxy_url(ours, setting="NOWSERVING_UPSTREAM_PROXY")
        for name, value in ((f"{scheme}_proxy", getattr(self, f"{scheme}_proxy")), ("all_proxy", self.all_proxy)):
            if found := value.get_secret_value().strip():
                return upstream_url.proxy_url(found, setting=name.upper())
        return None

    @property
    def has_traces(self) -> bool:
        """Whether spans are wanted, and where to is said."""
        is_off = self.otel_sdk_disabled.strip().lower() == "true" or self.otel_traces_exporter.strip().lower() == "none"
        return bool(self.otlp_endpoint.strip() or self.otlp_traces_endpoint.strip()) and not is_off

    def secrets(self) -> tuple[bytes, ...]:
        """The keys that encrypt what is stored, newest first. Raises ValueError when there is none."""
        if not self.secret_keys:
            raise ValueError("set NOWSERVING_SECRET_KEYS: openssl rand -base64 32 makes one")
        return tuple(_decode(secret.get_secret_value()) for secret in self.secret_keys)


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


# What `nowserving up` on the data folder says of its servers; see use_running_stack.
CONNECTION = "connection.json"
_running: dict[str, Any] = {}


@cache
def settings() -> Settings:
    """The settings of this process."""
    return Settings(**_running)


def use_running_stack() -> None:
    """Where the environment names no database, this process uses that of the `nowserving up` which runs on its data folder, if one does.

    For commands that are typed beside it; the parts of a stack are told everything by whoever starts them.
    """
    found = settings()
    if found.database_url:
        return
    try:
        told = json.loads((found.data_dir / CONNECTION).read_text())
    except (OSError, ValueError):
        return
    _running.update({name: told[name] for name in ("database_url", "redis_url", "port", "secret_keys") if name in told})
    settings.cache_clear()


def use_environment(environment: Mapping[str, str]) -> None:
    """In a forked process: its environment is exactly this one from now on, and its settings come from it."""
    os.environ.clear()
    os.environ.update(environment)
    settings.cache_clear()
