"""Extracts the message from an error that is not JSON: a text, a proxy's page, a redirect. Also cuts and cleans texts."""

from __future__ import annotations

import html
import re
from urllib.parse import urlsplit

from workers.upstream import answer_body

MESSAGE_BYTES = 2_000
FIELD_BYTES = 200
_ROUTES = re.compile(r"/(chat/completions|images/generations|images/edits|embeddings|moderations|models(/.*)?)/*$")
_DROPPED = re.compile(r"<!--.*?(?:-->|\Z)|<(script|style|svg)\b.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE)
_TITLE = re.compile(r"<title[^<>]*>(.*?)(?:</title\s*>|\Z)", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Longer pages are cut here; elements that are still open count as closed.
_BODY_BYTES = 16 * 1024


def visible_text(body: bytes, content_type: str) -> str:
    """The visible text of a page or plain text; empty for bytes that are not text."""
    text = answer_body.decode(body[:_BODY_BYTES], content_type)
    if text.lstrip()[:1] == "<":
        text = _DROPPED.sub(" ", text)
        title, rest = _TITLE.search(text), _strip(_TITLE.sub(" ", text))
        parts = (_strip(title[1]) if title else "", rest)
        text = ". ".join(part for part in dict.fromkeys(parts) if part)
    words = " ".join(text.split())
    if words in ("{}", "[]", "null", '""'):
        return ""
    odd = sum(not char.isprintable() or char == "\ufffd" for char in words)
    return "" if odd > len(words) // 10 else cut(words, MESSAGE_BYTES - 100)


def _strip(markup: str) -> str:
    return " ".join(html.unescape(_TAG.sub(" ", markup)).split())


def redirect_message(status: int, location: str) -> str:
    """The target of a redirect, and the setting to change. location: the header; its user and query are not shown."""
    target, base = _target(location)
    if not target:
        return f"The upstream answered {status}, a redirect without an address. Ask the operator to check OPENAI_BASE_URL."
    advice = f"Set OPENAI_BASE_URL, or the base URL of the pool's credential, to {base}" if base else "Check OPENAI_BASE_URL"
    return (
        f"The upstream answered {status}: it redirects to {target}, and redirects are not followed, so that no key goes astray. {advice}."
    )


def _target(location: str) -> tuple[str, str]:
    """The target without user and query, and the base URL there; empty strings where they are missing."""
    try:
        parts = urlsplit(location.strip())
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "", ""
    target = cut(f"{parts.scheme}://{host}{parts.path}" if host and parts.scheme else parts.path, FIELD_BYTES)
    is_base = parts.scheme in ("http", "https") and host and _ROUTES.search(parts.path)
    return target, cut(f"{parts.scheme}://{host}{_ROUTES.sub('', parts.path)}", FIELD_BYTES) if is_base else ""


def cut(text: str, limit: int) -> str:
    """Cuts the text to this many bytes of UTF-8 that jsonb accepts: without NUL and lone surrogates."""
    clean = _SURROGATE.sub("?", text[: limit + 1].replace("\x00", "\ufffd"))
    encoded = clean.encode()
    return clean if len(encoded) <= limit else encoded[: limit - 3].decode(errors="ignore") + "…"
