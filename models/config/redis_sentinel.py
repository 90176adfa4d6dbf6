"""URLs of a Redis with Sentinels: sentinel://[user:password@]host[:port],host[:port]…/database?master=name[&sentinel_password=…].

User and password are those of the servers; the Sentinels' own password, where they have one, is sentinel_password.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote, urlsplit

SCHEME = "sentinel://"
PORT = 26379


@dataclass(frozen=True)
class Sentinels:
    """The Sentinels that know the address of the master. hosts: (name, port)."""

    hosts: tuple[tuple[str, int], ...]
    master: str
    database: int
    user: str | None
    password: str | None
    sentinel_password: str | None

    def kombu_url(self) -> str:
        """The URL for kombu: one URL per Sentinel, separated by semicolons."""
        login = f"{quote(self.user or '', safe='')}:{quote(self.password, safe='')}@" if self.password else ""
        return ";".join(f"{SCHEME}{login}{f'[{host}]' if ':' in host else host}:{port}/{self.database}" for host, port in self.hosts)


def parse_url(url: str) -> Sentinels | None:
    """The parsed URL; None if it names a single server. Raises ValueError, which never contains the password."""
    if not url.startswith(SCHEME):
        return None
    parts = urlsplit(url)
    login, _, host_list = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    query = parse_qs(parts.query)
    try:
        hosts = tuple(_host(item) for item in host_list.split(",") if item)
        database = int(parts.path.strip("/") or 0)
    except ValueError:
        raise ValueError("NOWSERVING_REDIS_URL: sentinel://:password@host:26379,host:26379/0?master=name is the form") from None
    if not hosts or not query.get("master"):
        raise ValueError("NOWSERVING_REDIS_URL: a sentinel:// URL names its Sentinels, and ?master= what they call the master")
    return Sentinels(
        hosts, query["master"][0], database, unquote(user) or None, unquote(password) or None, query.get("sentinel_password", [None])[0]
    )


def _host(text: str) -> tuple[str, int]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, int(rest.lstrip(":") or PORT)
    host, _, port = text.partition(":")
    return host, int(port or PORT)
