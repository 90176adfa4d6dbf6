"""SSRF policy for webhook URLs: checks scheme, port, credentials and literal addresses.

The addresses that a host name resolves to are checked when the connection is opened (workers/webhooks/safe_http.py).
"""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote, urlsplit

from ssrfguard import Policy, SSRFGuardError, Target

from models.config.settings import settings

MAX_CHARS = 2_048
PORTS = frozenset({80, 443})
# Addresses tried per host name. The owner of the name chooses how many it has, and each of them may never answer.
MAX_ADDRESSES = 3
_SAFE_CHARS = "!$&'()*+,;=:@/?%-._~"


class NotAllowed(ValueError):
    """The policy forbids this URL. The message says what a field must be."""


def current_policy() -> Policy:
    """Returns the operator's policy: the public network, and what NOWSERVING_WEBHOOK_ALLOW_… adds."""
    config = settings()
    return _policy(config.webhook_allow_http, config.webhook_allow_ports, config.webhook_allow_networks)


def normalize(url: str) -> str:
    """Returns the URL as it is stored and called: host in lower case and ASCII, no default port, no fragment.

    Raises NotAllowed for a forbidden scheme or port, for credentials in the URL, and for an address that is not public.
    """
    if len(url) > MAX_CHARS:
        raise NotAllowed(f"must not be longer than {MAX_CHARS} characters")
    target = check_origin(url)
    split = urlsplit(url)
    query = f"?{quote(split.query, safe=_SAFE_CHARS)}" if split.query else ""
    return f"{target.scheme}://{authority(target)}{quote(split.path, safe=_SAFE_CHARS) or '/'}{query}"


def check_origin(url: str) -> Target:
    """Returns the origin to connect to. Raises NotAllowed if the policy forbids it, whatever its name resolves to."""
    try:
        return current_policy().check_url(url)
    except SSRFGuardError as error:
        reason = str(getattr(error, "reason", error)).split(";")[0]
        allowed = "http or https" if settings().webhook_allow_http else "https"
        raise NotAllowed(f"must be an {allowed} URL on the public internet: {reason}") from None


def authority(target: Target) -> str:
    """Returns the host, with the port unless it is the default one: as in a URL and in the Host header."""
    host = f"[{target.host}]" if ":" in target.host else target.host.rstrip(".")
    return host if target.port == {"http": 80, "https": 443}[target.scheme] else f"{host}:{target.port}"


@lru_cache(maxsize=8)
def _policy(http: bool, ports: tuple[int, ...], networks: tuple[str, ...]) -> Policy:
    return Policy(
        allowed_schemes=frozenset({"https", "http"} if http else {"https"}),
        allowed_ports=PORTS | frozenset(ports),
        allowed_networks=networks,  # type: ignore[arg-type]  # Policy converts them to networks
        max_connection_attempts=MAX_ADDRESSES,
        max_url_length=MAX_CHARS * 3,
    )
