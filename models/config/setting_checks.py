"""Validators of single settings: each returns the normalised value, or raises a ValueError that does not contain the value."""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr

from models.config import redis_sentinel

NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}))*\.?")
POSTGRES = ("postgresql+psycopg", "postgresql", "postgres")
REDIS = ("redis", "rediss")
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


def host(value: str) -> str:
    """An address or a name to listen on, without scheme and port."""
    if value and not NAME.fullmatch(value):
        try:
            ip_address(value)
        except ValueError:
            raise ValueError("it must be an address or a name of this machine, without scheme and port") from None
    if re.fullmatch(r"[0-9.]+", value):
        try:
            ip_address(value)
        except ValueError:
            raise ValueError("it is no IP address") from None
    return value


def host_pattern(value: str) -> str:
    """A name in a URL without scheme and port, in small letters; `.example.com` for `*.example.com` too; a star."""
    if value == "*":
        return value
    plain = value.lower().removeprefix("*").removesuffix(".")
    if value.startswith("*") and not plain.startswith("."):
        raise ValueError("a star stands alone or before a dot: *.example.com")
    name = plain.removeprefix("[").removesuffix("]") if plain.startswith("[") else plain
    host(name.removeprefix("."))
    if not name.removeprefix("."):
        raise ValueError("it must name a host, without scheme and port")
    return name


def database_url(value: str) -> str:
    """The URL of a PostgreSQL, with the scheme for psycopg; the usual short schemes are completed."""
    if not value:
        return value
    scheme, _, rest = value.partition("://")
    if scheme not in POSTGRES:
        raise ValueError("it must be the URL of a PostgreSQL and begin with postgresql+psycopg://")
    if not rest:
        raise ValueError("it names no server")
    _parse(value)
    return f"{POSTGRES[0]}://{rest}"


def redis_url(value: str) -> str:
    """The URL of a Redis or Valkey, or of Sentinels."""
    if not value:
        return value
    if redis_sentinel.parse_url(value) is not None:
        return value
    parts = _parse(value)
    if parts.scheme not in REDIS or not parts.hostname:
        raise ValueError("it must be the URL of a Redis or Valkey and begin with redis://, rediss:// or sentinel://")
    if not re.fullmatch(r"/?\d*", parts.path):
        raise ValueError("after the server comes the number of a database")
    return value


def web_url(value: str) -> str:
    """An http or https URL without a query."""
    if not value:
        return value
    parts = _parse(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or (not NAME.fullmatch(parts.hostname) and ":" not in parts.hostname):
        raise ValueError("it must begin with http:// or https:// and name a server")
    if parts.query or parts.fragment:
        raise ValueError("it must end before any ? or #")
    return value


def origin(value: str) -> str:
    """A star, or an origin: scheme, server, port."""
    if value != "*":
        parts = _parse(value)
        if parts.path not in ("", "/"):
            raise ValueError("an origin ends after the server and its port")
        if parts.scheme in ("http", "https") or not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^\s/?#]+/?", value):
            web_url(value)  # apps have schemes of their own: tauri://localhost
    return value


def token(value: SecretStr) -> SecretStr:
    """A bearer token: characters that a header can contain."""
    if not re.fullmatch(r"[\x21-\x7e]*", value.get_secret_value()):
        raise ValueError("it must be ASCII without blanks and line breaks, and without the word Bearer")
    return value


def login(value: SecretStr) -> SecretStr:
    """user:password."""
    if value.get_secret_value() and not re.fullmatch(r"[^:\s]+:[^\r\n]+", value.get_secret_value()):
        raise ValueError("it must be a user, a colon and a password")
    return value


def prefix(value: str) -> str:
    """A URL path."""
    if not re.fullmatch(r"[A-Za-z0-9._~/-]*", value) or "//" in value:
        raise ValueError("it must be the path of an address")
    return value


def folder(value: object) -> object:
    """A folder that exists or can be created."""
    if not value:
        raise ValueError("it must name a folder")
    path = Path(str(value)).absolute()
    existing = next(parent for parent in (path, *path.parents) if parent.exists())
    if not existing.is_dir():
        raise ValueError("it must name a folder, and there is a file")
    return value


def log_level(value: str) -> str:
    """A level of Python's logging, in capitals."""
    if value.upper() not in LEVELS:
        raise ValueError(f"it must be one of {', '.join(LEVELS)}")
    return value.upper()


def port(value: int) -> int:
    """A port of a URL."""
    if not 1 <= value <= 65_535:
        raise ValueError("a port is a number from 1 to 65535")
    return value


def _parse(value: str) -> SplitResult:
    if not re.fullmatch(r"[\x21-\x7e]+", value):
        raise ValueError("it must not have blanks, line breaks or letters beyond ASCII: write those as %20 and the like")
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise ValueError("its server or its port cannot be read") from None
    return parts


def _each(check: Callable[[str], str]) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    return lambda values: tuple(check(value) for value in values)


Host = Annotated[str, AfterValidator(host)]
HostPatterns = Annotated[tuple[str, ...], AfterValidator(_each(host_pattern))]
DatabaseUrl = Annotated[str, AfterValidator(database_url)]
RedisUrl = Annotated[str, AfterValidator(redis_url)]
WebUrl = Annotated[str, AfterValidator(web_url)]
Origins = Annotated[tuple[str, ...], AfterValidator(_each(origin))]
Token = Annotated[SecretStr, AfterValidator(token)]
Login = Annotated[SecretStr, AfterValidator(login)]
Prefix = Annotated[str, AfterValidator(prefix)]
Folder = Annotated[Path, BeforeValidator(folder)]
LogLevel = Annotated[str, AfterValidator(log_level)]
Port = Annotated[int, AfterValidator(port)]
