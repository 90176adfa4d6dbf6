"""WSGI middleware: rewrites PATH_INFO of a pasted or doubled base URL to the address that the routes are registered at.

Programs join a base URL and an endpoint in every way: without `/v1`, with `/v1/v1`, with `//`, with a slash at the end, with a whole
endpoint as the base. A redirect would lose the body of a POST, so that the request is served as if it had come to the plain address.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from flask import Flask

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ROOT = "v1"
#: What stands before an endpoint in a base URL, in segments.
BASES: Sequence[Sequence[str]] = ((ROOT,), ("openai", ROOT), ("openai",), ("chat", "completions"))


class Addresses:
    """The application behind one address for each endpoint. names: first segments of the addresses under /v1."""

    def __init__(self, application: WSGIApplication, names: Iterable[str]) -> None:
        self._application, self._names = application, frozenset(names)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = _sent(environ)
        if (found := plain(path, self._names)) != path:
            environ["PATH_INFO"] = unquote_to_bytes(found.encode("latin-1")).decode("latin-1")
        return self._application(environ, start_response)


def register(app: Flask) -> None:
    """Serves every address under /v1 in all its spellings. Called when all routes are registered: pages keep their own addresses."""
    rules = [rule.rule.strip("/").split("/") for rule in app.url_map.iter_rules()]
    pages = {first for first, *_ in rules if first != ROOT}
    app.wsgi_app = Addresses(app.wsgi_app, {rest[0] for first, *rest in rules if first == ROOT} - pages)  # type: ignore[method-assign]


def plain(path: str, names: frozenset[str]) -> str:
    """The address that this path means; the path itself unless it leads under /v1. path: as it was sent, percent-encoded."""
    segments = [segment for segment in path.split("/") if segment]
    rest = segments
    while (after := _without_base(rest)) and (after[0] in names or _without_base(after)):
        rest = after
    if rest and rest[0] in names:
        return "/".join(["", ROOT, *rest])
    is_ours = bool(segments) and segments[0] in {base[0] for base in BASES}
    return "/".join(["", *segments]) if is_ours else path


def _without_base(segments: Sequence[str]) -> list[str]:
    """The segments behind a base; empty where there is none."""
    return next((list(segments[len(base) :]) for base in BASES if list(base) == list(segments[: len(base)])), [])


def _sent(environ: WSGIEnvironment) -> str:
    """The path with its percent-encoding, by which a slash inside a name is not one between two; servers hand it over as RAW_URI."""
    sent = str(environ.get("RAW_URI", "")).partition("?")[0]
    return sent if sent.startswith("/") else str(environ.get("PATH_INFO", ""))
