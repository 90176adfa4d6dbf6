"""The allowed values of the Host header: loopback names, IP addresses, and the names that the operator configured.

This is the defence against DNS rebinding: a page rebinds its own name to an address of this server, and the browser sends that name as
Host. Such a page cannot have an IP address as its name, because it would then come from this server: every IP address is allowed.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from models.config.settings import settings

ANY = "*"
# Names of the container host, set by container engines. Names below .internal cannot be registered.
CONTAINER_NAMES = frozenset({"host.docker.internal", "gateway.docker.internal", "host.containers.internal"})
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]\\]+)(:\d{0,5})?")


def parse_name(host: str) -> str | None:
    """The name in a Host header, in lower case, without port, brackets and the dot at its end; None when it cannot be read."""
    match = _HOST.fullmatch(host.strip())
    return match["name"].lower().strip("[]").removesuffix(".") if match else None


def is_loopback(name: str) -> bool:
    """Whether this name, as `parse_name` returns it, is a loopback address. 0.0.0.0 (all interfaces) includes loopback."""
    try:
        address = ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def is_configured(name: str) -> bool:
    """Whether the operator configured this name: NOWSERVING_HOST, the host of NOWSERVING_PUBLIC_URL or one of NOWSERVING_ALLOWED_HOSTS."""
    own = {settings().host.lower().removesuffix("."), (urlsplit(settings().public_url).hostname or "").removesuffix(".")}
    return name in own - {""} or any(_matches(name, pattern) for pattern in settings().allowed_hosts)


def is_allowed(host: str) -> bool:
    """Whether this Host header is allowed."""
    if ANY in settings().allowed_hosts:
        return True
    name = parse_name(host)
    return name is not None and (_is_address(name) or is_loopback(name) or name in CONTAINER_NAMES or is_configured(name))


def has_open_loopback() -> bool:
    """Whether any program or page on this machine may use its own key: keys are open and the server listens on loopback.

    Always False with NOWSERVING_ALLOWED_HOSTS=*: in a container, all interfaces are not the loopback of the machine.
    """
    return settings().open_keys and ANY not in settings().allowed_hosts and (not settings().host or is_loopback(settings().host.lower()))


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or (pattern.startswith(".") and (name == pattern[1:] or name.endswith(pattern)))


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
