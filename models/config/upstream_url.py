"""Checks the URLs of the upstream and of the proxy to it. The error message names the invalid part."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

EXAMPLE = "https://api.openai.com/v1"
AZURE_EXAMPLE = "https://NAME.openai.azure.com"
PROXY_EXAMPLE = "http://proxy.example:3128"
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
# Paths at the end of URLs in curl examples. Each request adds its own path.
ENDPOINTS = (
    "/chat/completions", "/completions", "/responses", "/embeddings", "/moderations", "/images/generations", "/images/edits", "/models",
)  # fmt: skip


def base_url(url: str, *, setting: str, is_azure: bool = False) -> str:
    """The URL without surrounding blanks and trailing slashes. Raises ValueError, in one line with the setting and an example."""
    example = AZURE_EXAMPLE if is_azure else EXAMPLE
    url = url.strip().rstrip("/")
    parts = _parts(url, setting=setting, example=example)
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{setting} must begin with http:// or https://, for example {example}")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"{setting} must not hold a user or password; a key is given as a credential. Example: {example}")
    if "?" in url or "#" in url:
        hint = "" if is_azure else "; for Azure's api-version add a credential with --kind azure"
        raise ValueError(f"{setting} must not hold a query or fragment (? or #){hint}. Example: {example}")
    for endpoint in ENDPOINTS:
        if parts.path.endswith(endpoint):
            raise ValueError(f"{setting} must not end in {endpoint}; each request adds that. Set {url.removesuffix(endpoint)}")
    if is_azure and "/deployments" in parts.path:
        raise ValueError(f"{setting} must not name a deployment; the model of each request does. Example: {example}")
    return url


def proxy_url(url: str, *, setting: str) -> str:
    """The URL of a proxy, with a scheme. Raises ValueError; its one line names the setting and contains no password."""
    url = url.strip().rstrip("/")
    url = url if "://" in url else f"http://{url}"
    parts = _parts(url, setting=setting, example=PROXY_EXAMPLE)
    if parts.scheme not in PROXY_SCHEMES:
        raise ValueError(f"{setting} must begin with {', '.join(f'{scheme}://' for scheme in PROXY_SCHEMES)}, for example {PROXY_EXAMPLE}")
    return url


def is_loopback(host: str) -> bool:
    """Whether this name or address is the loopback of this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _parts(url: str, *, setting: str, example: str) -> SplitResult:
    if any(char.isspace() or not char.isprintable() for char in url):
        raise ValueError(f"{setting} must not hold blanks or line breaks, for example {example}")
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise ValueError(f"{setting} is not an address: its host or port cannot be read, for example {example}") from None
    if parts.scheme in (*PROXY_SCHEMES,) and (not host or port == 0):
        raise ValueError(f"{setting} must name a host (and a port from 1 to 65535, if any), for example {example}")
    return parts
