"""Names by which this server may be called in a URL (the Host header): loopback, addresses, and those that the operator has configured.

A page that rebinds its own name to an address of ours (DNS rebinding) has the browser send that name as Host. Such a page cannot have an
IP address as its name, or it would have come from that very server: every literal address is a name of ours.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

from models.config.settings import settings

ANY = "*"
# Container engines give these to the machine that a container runs on. No one can register a name below .internal.
CONTAINER_NAMES = frozenset({"host.docker.internal", "gateway.docker.internal", "host.containers.internal"})
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[^\s:/?#@\[\]\\]+)(:\d{0,5})?")


def parse_name(host: str) -> str | None:
    """The name in a Host header, in lower case, without port, brackets and the dot at its end; None when it cannot be read."""
    found = _HOST.fullmatch(host.strip())
    return found["name"].lower().strip("[]").removesuffix(".") if found else None


def is_loopback(name: str) -> bool:
    """Whether only this machine is meant by the name, as `name_in` returns it. All interfaces (0.0.0.0) count: they include loopback."""
    try:
        address = ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def is_configured(name: str) -> bool:
    """Whether the operator has named it: NOWSERVING_HOST, the host of NOWSERVING_PUBLIC_URL or one of NOWSERVING_ALLOWED_HOSTS."""
    own = {settings().host.lower().removesuffix("."), (urlsplit(settings().public_url).hostname or "").removesuffix(".")}
    return name in own - {""} or any(_matches(name, pattern) for pattern in settings().allowed_hosts)


def is_allowed(host: str) -> bool:
    """Whether a request with this Host header is meant for this server."""
    if ANY in settings().allowed_hosts:
        return True
    name = parse_name(host)
    return name is not None and (_is_address(name) or is_loopback(name) or name in CONTAINER_NAMES or is_configured(name))


def has_open_loopback() -> bool:
    """Whether any program or page on this machine may bring a key of its own: keys are open and the server listens on loopback.

    With NOWSERVING_ALLOWED_HOSTS=* never: in a container all interfaces are not the machine's loopback.
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
