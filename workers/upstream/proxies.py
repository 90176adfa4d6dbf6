"""Which proxy a call to the upstream takes: NOWSERVING_UPSTREAM_PROXY, else HTTP_PROXY, HTTPS_PROXY, ALL_PROXY; and NO_PROXY."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from urllib.parse import unquote, urlsplit

import httpcore2

from models.config import upstream_url
from models.config.settings import settings


def address_for(origin: str) -> str | None:
    """The proxy's address for an upstream's origin, perhaps with user and password; None: direct.

    This machine is reached directly unless NOWSERVING_UPSTREAM_PROXY is set: HTTP_PROXY is rarely meant for a model beside us.
    """
    parts = urlsplit(origin)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if settings().upstream_proxy is None and upstream_url.is_loopback(host):
        return None
    if any(_matches(rule.strip().lower(), host, port) for rule in settings().no_proxy.split(",")):
        return None
    return settings().proxy(parts.scheme)


def proxy_for(origin: str) -> httpcore2.Proxy | None:
    """The same for httpcore2."""
    address = address_for(origin)
    if address is None:
        return None
    parts = urlsplit(address)
    auth = (unquote(parts.username).encode(), unquote(parts.password or "").encode()) if parts.username else None
    return httpcore2.Proxy(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", auth=auth)


def _matches(rule: str, host: str, port: int) -> bool:
    """`*`, a domain with or without a dot before it, an address, a network, each but the first with or without a port."""
    if rule == "*":
        return True
    try:
        return ip_address(host) in ip_network(rule, strict=False)
    except ValueError:
        pass
    name, _, wanted = rule.rpartition(":") if rule.rpartition(":")[2].isdecimal() and rule.count(":") == 1 else (rule, "", "")
    name = name.strip("[]").lstrip("*").lstrip(".")
    return bool(name) and (not wanted or int(wanted) == port) and (host == name or host.endswith(f".{name}"))
