"""The settings of all programs, read once from the environment (prefix NOWSERVING_)."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Self

from pydantic import field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.config import forwarded_headers, price_file, secret_files, upstream_url
from models.config.job_settings import Attempts, Limits, Money, Queue, Requests, Sessions
from models.config.server_settings import OPENAI_API, Access, Addresses, Processes, Telemetry, Upstream, Webhooks

KEY_BYTES = 32
OPS_TOKEN_MIN_CHARS = 24


class Settings(
    Addresses, Upstream, Access, Telemetry, Processes, Webhooks, Queue, Limits, Attempts, Requests, Money, Sessions, BaseSettings
):
    """All settings, frozen for the life of the process. Units are in the names; the fields are in the two modules of sections."""

    model_config = SettingsConfigDict(
        env_prefix="NOWSERVING_", frozen=True, populate_by_name=True, extra="ignore", hide_input_in_errors=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _from_files(cls, given: dict[str, Any]) -> dict[str, Any]:
        return secret_files.load_secrets(given)

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
            price_file.load_prices(value)
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
        """The URL of the proxy to upstreams with this scheme, including user and password; None: no proxy.

        Raises ValueError for an invalid URL.
        """
        if self.upstream_proxy is not None:
            url = self.upstream_proxy.get_secret_value().strip()
            is_direct = url.lower() in ("", "none", "direct")
            return None if is_direct else upstream_url.proxy_url(url, setting="NOWSERVING_UPSTREAM_PROXY")
        for name, value in ((f"{scheme}_proxy", getattr(self, f"{scheme}_proxy")), ("all_proxy", self.all_proxy)):
            if url := value.get_secret_value().strip():
                return upstream_url.proxy_url(url, setting=name.upper())
        return None

    @property
    def has_traces(self) -> bool:
        """Whether tracing is configured: an endpoint is set and the SDK is not disabled."""
        is_off = self.otel_sdk_disabled.strip().lower() == "true" or self.otel_traces_exporter.strip().lower() == "none"
        return bool(self.otlp_endpoint.strip() or self.otlp_traces_endpoint.strip()) and not is_off

    def secrets(self) -> tuple[bytes, ...]:
        """The keys that encrypt stored secrets, newest first. Raises ValueError if there is none."""
        if not self.secret_keys:
            raise ValueError("set NOWSERVING_SECRET_KEYS: openssl rand -base64 32 makes one")
        return tuple(_decode(secret.get_secret_value()) for secret in self.secret_keys)


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


# The file in the data folder with the URLs of a running `nowserving up`; see use_running_stack.
CONNECTION = "connection.json"
_running: dict[str, Any] = {}


@cache
def settings() -> Settings:
    """The settings of this process."""
    return Settings(**_running)


def use_running_stack() -> None:
    """If the environment names no database, uses the servers of the `nowserving up` that runs on the data folder.

    For commands beside a running stack. The processes of a stack get all settings from the process that starts them.
    """
    current = settings()
    if current.database_url:
        return
    try:
        connection = json.loads((current.data_dir / CONNECTION).read_text())
    except (OSError, ValueError):
        return
    _running.update({name: connection[name] for name in ("database_url", "redis_url", "port", "secret_keys") if name in connection})
    settings.cache_clear()


def use_environment(environment: Mapping[str, str]) -> None:
    """Replaces the environment of a forked process, and reads its settings again."""
    os.environ.clear()
    os.environ.update(environment)
    settings.cache_clear()
