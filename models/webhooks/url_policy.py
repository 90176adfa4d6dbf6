"""What webhooks may reach, as far as a URL can say. Where a name leads is looked at in the connection itself
(workers/webhooks/safe_http.py)."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote, urlsplit

from ssrfguard import Policy, SSRFGuardError, Target

from models.config.settings import settings

MAX_CHARS = 2_048
PORTS = frozenset({80, 443})
# Of a name's addresses; whoever runs its name server says how many there are, and each may be silent.
MAX_ADDRESSES = 3
_PLAIN = "!$&'()*+,;=:@/?%-._~"


class NotAllowed(ValueError):
    """This URL may not be called; the message says why, as what a field must be."""


def current_policy() -> Policy:
    """What the operator allows: the public network, and NOWSERVING_WEBHOOK_ALLOW_…"""
    now = settings()
    return _policy(now.webhook_allow_http, now.webhook_allow_ports, now.webhook_allow_networks)


def normalize(url: str) -> str:
    """The URL as it is stored and called: host in lower case and ASCII, no port that goes without saying, no fragment.

    Raises NotAllowed for another scheme or port, credentials in it, and an address that is not public.
    """
    if len(url) > MAX_CHARS:
        raise NotAllowed(f"must not be longer than {MAX_CHARS} characters")
    target = check_origin(url)
    split = urlsplit(url)
    query = f"?{quote(split.query, safe=_PLAIN)}" if split.query else ""
    return f"{target.scheme}://{authority(target)}{quote(split.path, safe=_PLAIN) or '/'}{query}"


def check_origin(url: str) -> Target:
    """The origin to connect to. Raises NotAllowed when it may not be reached, whatever its name resolves to."""
    try:
        return current_policy().check_url(url)
    except SSRFGuardError as error:
        why = str(getattr(error, "reason", error)).split(";")[0]
        allowed = "http or https" if settings().webhook_allow_http else "https"
        raise NotAllowed(f"must be an {allowed} URL that everybody can reach: {why}") from None


def authority(target: Target) -> str:
    """Host and, where it does not go without saying, port: as in a URL and as in the Host header."""
    host = f"[{target.host}]" if ":" in target.host else target.host.rstrip(".")
    return host if target.port == {"http": 80, "https": 443}[target.scheme] else f"{host}:{target.port}"


@lru_cache(maxsize=8)
def _policy(http: bool, ports: tuple[int, ...], networks: tuple[str, ...]) -> Policy:
    return Policy(
        allowed_schemes=frozenset({"https", "http"} if http else {"https"}),
        allowed_ports=PORTS | frozenset(ports),
        allowed_networks=networks,  # type: ignore[arg-type]  # made networks when the policy is made
        max_connection_attempts=MAX_ADDRESSES,
        max_url_length=MAX_CHARS * 3,
    )
