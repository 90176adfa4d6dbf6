"""Chooses the proxy of a call: NOWSERVING_UPSTREAM_PROXY, else HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, with the exceptions in NO_PROXY."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from urllib.parse import unquote, urlsplit

import httpcore2

from models.config import upstream_url
from models.config.settings import settings


def address_for(origin: str) -> str | None:
    """The proxy's address for an upstream's origin, perhaps with user and password; None: no proxy.

    A loopback address takes no proxy unless NOWSERVING_UPSTREAM_PROXY is set: HTTP_PROXY is rarely meant for a local model.
    """
    parts = urlsplit(origin)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if settings().upstream_proxy is None and upstream_url.is_loopback(host):
        return None
    if any(_matches(rule.strip().lower(), host, port) for rule in settings().no_proxy.split(",")):
        return None
    return settings().proxy(parts.scheme)


def proxy_for(origin: str) -> httpcore2.Proxy | None:
    """The proxy in httpcore2's form."""
    address = address_for(origin)
    if address is None:
        return None
    parts = urlsplit(address)
    auth = (unquote(parts.username).encode(), unquote(parts.password or "").encode()) if parts.username else None
    return httpcore2.Proxy(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", auth=auth)


def _matches(rule: str, host: str, port: int) -> bool:
    """Whether a NO_PROXY rule matches: `*`, a domain (also with a leading dot), an address or a network; all but `*` may have a port."""
    if rule == "*":
        return True
    try:
        return ip_address(host) in ip_network(rule, strict=False)
    except ValueError:
        pass
    name, _, rule_port = rule.rpartition(":") if rule.rpartition(":")[2].isdecimal() and rule.count(":") == 1 else (rule, "", "")
    name = name.strip("[]").lstrip("*").lstrip(".")
    return bool(name) and (not rule_port or int(rule_port) == port) and (host == name or host.endswith(f".{name}"))
