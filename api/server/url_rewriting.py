"""WSGI middleware: rewrites PATH_INFO of a pasted or doubled base URL to the address that the routes are registered at.

Clients join a base URL and an endpoint in many ways: without `/v1`, with `/v1/v1`, with `//`, with a slash at the end, with a whole
endpoint as the base. A redirect would lose the body of a POST, so the middleware rewrites the path instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from flask import Flask

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ROOT = "v1"
#: The segments that may precede an endpoint.
BASES: Sequence[Sequence[str]] = ((ROOT,), ("openai", ROOT), ("openai",), ("chat", "completions"))


class UrlRewriter:
    """The middleware. names: first segments of the addresses under /v1."""

    def __init__(self, application: WSGIApplication, names: Iterable[str]) -> None:
        self._application, self._names = application, frozenset(names)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = _raw_path(environ)
        if (canonical := canonical_path(path, self._names)) != path:
            environ["PATH_INFO"] = unquote_to_bytes(canonical.encode("latin-1")).decode("latin-1")
        return self._application(environ, start_response)


def register(app: Flask) -> None:
    """Rewrites all spellings of the addresses under /v1. Call it after all routes are registered: pages keep their addresses."""
    rules = [rule.rule.strip("/").split("/") for rule in app.url_map.iter_rules()]
    pages = {first for first, *_ in rules if first != ROOT}
    app.wsgi_app = UrlRewriter(app.wsgi_app, {rest[0] for first, *rest in rules if first == ROOT} - pages)  # type: ignore[method-assign]


def canonical_path(path: str, names: frozenset[str]) -> str:
    """The registered address of this path; other paths stay unchanged. path: percent-encoded, as it was sent."""
    segments = [segment for segment in path.split("/") if segment]
    rest = segments
    while (after := _without_base(rest)) and (after[0] in names or _without_base(after)):
        rest = after
    if rest and rest[0] in names:
        return "/".join(["", ROOT, *rest])
    is_ours = bool(segments) and segments[0] in {base[0] for base in BASES}
    return "/".join(["", *segments]) if is_ours else path


def _without_base(segments: Sequence[str]) -> list[str]:
    """The segments after a base; empty without a base."""
    return next((list(segments[len(base) :]) for base in BASES if list(base) == list(segments[: len(base)])), [])


def _raw_path(environ: WSGIEnvironment) -> str:
    """The percent-encoded path (RAW_URI), in which a slash inside a name differs from a separator."""
    path = str(environ.get("RAW_URI", "")).partition("?")[0]
    return path if path.startswith("/") else str(environ.get("PATH_INFO", ""))
