"""Messages for invalid settings, in one line: the name, the error, and an example. The value is never shown."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from types import MappingProxyType

from pydantic import AliasChoices, SecretStr, ValidationError

from models.config.settings import Settings, settings

# Examples for settings whose default is empty or no example.
EXAMPLES: Mapping[str, str] = MappingProxyType({
    "database_url": "postgresql+psycopg://nowserving:password@127.0.0.1:5432/nowserving", "redis_url": "redis://:password@127.0.0.1:6379/0",
    "public_url": "https://queue.example.com", "trusted_proxies": "10.0.0.0/8", "secret_keys": "$(openssl rand -base64 32)",
    "page_key": "sk-...", "ops_token": "$(openssl rand -hex 24)", "flower_basic_auth": "operator:password", "flower_url_prefix": "/flower",
    "allowed_hosts": "queue.example.com,.example.net",
    "cors_origins": "https://chat.example.com", "data_dir": "/var/lib/nowserving", "webhook_allow_networks": "10.0.0.0/8",
    "webhook_allow_ports": "8080,8443", "otlp_endpoint": "http://127.0.0.1:4318", "otlp_traces_endpoint": "http://127.0.0.1:4318/v1/traces",
    "prices_file": "/etc/nowserving/prices.toml", "forward_headers_issued": "OpenAI-Project,X-Title",
})  # fmt: skip


def explain(error: ValidationError) -> str:
    """The first error, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    message = re.sub(r"^Value error, ", "", first["msg"]).replace("\n", " ")
    if not first["loc"]:  # a check of several settings names them in its message
        named = re.search(r"NOWSERVING_([A-Z_]+)", message)
        return (
            message
            if named is None or any(word in message for word in ("openssl", "unset one", "xample"))
            else message + _example(named.group(1).lower())
        )
    field = _field(str(first["loc"][0]))
    if message.startswith(env_name(field)):
        return message  # it names the setting and a valid value
    return f"{env_name(field)}: {message[:1].lower()}{message[1:]}{_example(field)}"


def settings_or_exit() -> Settings:
    """The settings of a starting process. An invalid setting ends the process with status 2 and one line on stderr."""
    try:
        return settings()
    except ValidationError as error:
        sys.stderr.write(f"error: {explain(error)}\n")
        raise SystemExit(2) from None


def env_name(field: str) -> str:
    """The environment variable that this setting comes from."""
    alias = Settings.model_fields[field].validation_alias
    return str(alias.choices[0]) if isinstance(alias, AliasChoices) else f"NOWSERVING_{field.upper()}"


def _field(named: str) -> str:
    """The name of the setting in an error, which may name the environment variable instead."""
    return next((field for field in Settings.model_fields if named in (field, env_name(field))), named)


def _example(field: str) -> str:
    if field not in Settings.model_fields:
        return ""
    plain = field.removesuffix("_file")
    example = f"/run/secrets/{plain}" if field.endswith("_file") and field not in EXAMPLES else EXAMPLES.get(field) or _default(field)
    return f"; for example {env_name(field)}={example}" if example else ""


def _default(field: str) -> str:
    default = Settings.model_fields[field].get_default(call_default_factory=True)
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return default.get_secret_value() if isinstance(default, SecretStr) else str(default)
